"""Metrics for Prometheus. The hot path adds to plain numbers; families are made when somebody scrapes.

prometheus-client's own Counter and Histogram take a lock and several microseconds an observation, which at 10,000
calls a second would be a good part of a core.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nebuladb.env import probe
from nebuladb.server.samples import GroupSample, NodeSamples
from nebuladb.server.space import SpaceWatch

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BYTES: Final = tuple(float(4**power) for power in range(4, 13))
"""256 bytes to 16 MiB."""
MAX_RPC_METHODS: Final = 256
"""Methods that get numbers of their own; later ones share one, so that made-up names fill no memory."""
MAX_WORKS: Final = 64
"""Kinds of work that make the loop late, likewise."""
OTHER_METHOD: Final = "other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Buckets:
    """A histogram of plain numbers: one bisect and three additions an observation. One thread writes it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value`, in the histogram's unit."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations at or below it), as Prometheus wants it."""
        pairs, seen = [], 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            pairs.append((bound, float(seen)))
        return pairs


class Metrics:
    """One node's numbers, told in the event loop."""

    def __init__(self) -> None:
        self.fsync_seconds = Buckets(SECONDS)
        self.log_fsync = self.fsync_seconds.observe
        """The log was flushed to disk once, in so many seconds."""
        self.batch_bytes = Buckets(BYTES)
        self.log_batch = self.batch_bytes.observe
        """A log batch of so many bytes was written."""
        self.apply_seconds = Buckets(SECONDS)
        self.applied_entries = 0
        self.late_seconds: dict[str, float] = {}
        self.late_turns: dict[str, int] = {}
        self.worst_beat = self.worst_own = 0.0
        """Seconds by which the loop came round late at worst; and likewise, less those for which it had no core."""
        self.rpc_seconds: dict[str, Buckets] = {}
        self.rpc_handled: dict[tuple[str, str], int] = {}
        self._started = time.time()
        self._samples: NodeSamples | None = None
        self._room: SpaceWatch | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Scrape(self))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def read_from(self, samples: NodeSamples) -> None:
        """From now on take group and queue numbers from `samples`."""
        self._samples = samples

    def read_room_from(self, room: SpaceWatch) -> None:
        """From now on take the disk's numbers from `room`."""
        self._room = room

    def applied(self, entries: int, seconds: float) -> None:
        """A slice of committed entries was applied."""
        self.applied_entries += entries
        self.apply_seconds.observe(seconds)

    def loop_late(self, late: float, work: str) -> None:
        """The loop came round `late` seconds after it should have, which is too late, because of `work`."""
        if work not in self.late_turns and len(self.late_turns) >= MAX_WORKS:
            work = OTHER_METHOD
        self.late_turns[work] = self.late_turns.get(work, 0) + 1
        self.late_seconds[work] = self.late_seconds.get(work, 0.0) + late

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """A call of `method` (``/package.Service/Method``) ended with the status `code` (its name)."""
        buckets = self.rpc_seconds.get(method)
        if buckets is None:
            if len(self.rpc_seconds) >= MAX_RPC_METHODS:
                method = OTHER_METHOD
            buckets = self.rpc_seconds.setdefault(method, Buckets(SECONDS))
        buckets.observe(seconds)
        key = (method, code)
        self.rpc_handled[key] = self.rpc_handled.get(key, 0) + 1

    def parts(self) -> Iterator[bytes]:
        """Everything in Prometheus's text format (`CONTENT_TYPE`), a family at a time, each as it is when asked for."""
        for family in self._registry.collect():
            yield generate_latest(_Family(family))

    def families(self) -> Iterator[Metric]:
        """Our own metrics, as they are now."""
        # Not process_start_time_seconds, which stays when a node starts anew by itself: it is the same process.
        start = "When the node started, the last time, in seconds since 1970."
        yield GaugeMetricFamily("nebula_start_time_seconds", start, value=self._started)
        yield _counter("nebula_log_fsync", "Flushes of the Raft log to disk.", self.fsync_seconds.count)
        yield _histogram("nebula_log_fsync_seconds", "Time of one flush of the Raft log.", self.fsync_seconds)
        yield _histogram("nebula_log_batch_bytes", "Size of one batch of the Raft log.", self.batch_bytes)
        yield _counter("nebula_apply_entries", "Log entries applied.", self.applied_entries)
        yield _histogram("nebula_apply_seconds", "Time to apply one slice of entries.", self.apply_seconds)
        yield from self._loop_families()
        yield from self._disk_families()
        yield from self._rpc_families()
        probes = CounterMetricFamily("nebula_rare_path", "Rare paths of the code that were taken.", labels=["name"])
        for name, hits in sorted(probe.hits.items()):
            probes.add_metric([name], hits)
        yield probes
        if self._samples is not None:
            yield from _group_families(self._samples.groups())
            yield from _queue_families(self._samples)
            alarms = GaugeMetricFamily("nebula_alarms", "Alarms that are raised; /status has them.", labels=["kind"])
            for kind, count in sorted(self._samples.alarms().items()):
                alarms.add_metric([kind], count)
            yield alarms
            yield from _snapshot_families(self._samples.snapshots())

    def _loop_families(self) -> Iterator[Metric]:
        late = CounterMetricFamily("nebula_loop_late", "Turns of the loop over 20 ms, by work.", labels=["work"])
        seconds = CounterMetricFamily("nebula_loop_late_seconds", "How long those took.", labels=["work"])
        for work, count in sorted(self.late_turns.items()):
            late.add_metric([work], count)
            seconds.add_metric([work], self.late_seconds[work])
        yield late
        yield seconds
        worst = "The longest that the loop was away since the start."
        yield GaugeMetricFamily("nebula_loop_worst_seconds", worst, value=self.worst_beat)
        own = "Likewise, less the time for which other processes had its core."
        yield GaugeMetricFamily("nebula_loop_worst_own_seconds", own, value=self.worst_own)

    def _disk_families(self) -> Iterator[Metric]:
        if self._room is not None and self._room.seen is not None:
            room, low = self._room.seen
            for name, text, value in (
                ("nebula_disk_bytes", "Size of the data directory's file system.", room.total),
                ("nebula_disk_free_bytes", "What of it is free.", room.free),
                ("nebula_disk_low_bytes", "The node is read-only when less is free.", low),
            ):
                yield GaugeMetricFamily(name, text, value=value)

    def _rpc_families(self) -> Iterator[Metric]:
        handled = CounterMetricFamily("nebula_rpc_handled", "Calls that ended.", labels=["method", "code"])
        for (method, code), count in sorted(self.rpc_handled.items()):
            handled.add_metric([method, code], count)
        yield handled
        seconds = HistogramMetricFamily("nebula_rpc_seconds", "Time of one call in this node.", labels=["method"])
        for method, buckets in sorted(self.rpc_seconds.items()):
            seconds.add_metric([method], buckets.cumulative(), buckets.total)
        yield seconds


class _Family(Collector):
    """One family, for prometheus-client to write."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


class _Scrape(Collector):
    """Prometheus-client's view of our metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, buckets: Buckets) -> Metric:
    return HistogramMetricFamily(name, text, buckets=buckets.cumulative(), sum_value=buckets.total)


def _group_families(groups: Iterable[GroupSample]) -> Iterator[Metric]:
    """Raft's numbers, by group."""
    labels = ["group", "keyspace"]
    rows = [([str(group.group), group.keyspace], group) for group in groups]
    gauges = (
        ("nebula_raft_leader", "1 if this replica leads its group.", "leading"),
        ("nebula_raft_has_leader", "1 if this replica knows a leader.", "has_leader"),
        ("nebula_raft_term", "Current term.", "term"),
        ("nebula_raft_commit", "Committed index.", "committed"),
        ("nebula_raft_applied", "Applied index.", "applied"),
        ("nebula_raft_last_index", "Last index of the log.", "last_index"),
        ("nebula_raft_log_start", "First index that the log still has.", "log_start"),
        ("nebula_revision", "The shard's revision as applied here.", "revision"),
    )
    for name, text, field in gauges:
        gauge = GaugeMetricFamily(name, text, labels=labels)
        for values, group in rows:
            gauge.add_metric(values, float(getattr(group, field)))
        yield gauge
    counters = (
        ("nebula_raft_leader_changes", "New leaders that this replica saw.", "leader_changes"),
        ("nebula_raft_proposals", "Entries that this replica appended as leader.", "proposals"),
        ("nebula_raft_proposals_refused", "Writes refused, since too many waited.", "proposals_refused"),
    )
    for name, text, field in counters:
        counter = CounterMetricFamily(name, text, labels=labels)
        for values, group in rows:
            counter.add_metric(values, float(getattr(group, field)))
        yield counter


def _snapshot_families(counts: Mapping[str, int]) -> Iterator[Metric]:
    ends = CounterMetricFamily("nebula_snapshots", "Snapshots between nodes that ended, by how.", labels=["end"])
    for end in ("sent", "received", "failed", "refused"):
        ends.add_metric([end], counts.get(end, 0))
    yield ends
    size = CounterMetricFamily("nebula_snapshot_bytes", "Bytes of their chunks.", labels=["direction"])
    for direction in ("sent", "received"):
        size.add_metric([direction], counts.get(f"{direction}_bytes", 0))
    yield size
    seconds = counts.get("received_ms", 0) / 1000
    yield _counter("nebula_snapshot_seconds", "From the first chunk to the new state, of those received.", seconds)


def _queue_families(samples: NodeSamples) -> Iterator[Metric]:
    size = GaugeMetricFamily("nebula_queue_size", "What a bounded queue holds.", labels=["queue"])
    bound = GaugeMetricFamily("nebula_queue_bound", "What a bounded queue may hold.", labels=["queue"])
    for queue in samples.queues():
        size.add_metric([queue.name], queue.size)
        bound.add_metric([queue.name], queue.bound)
    yield size
    yield bound

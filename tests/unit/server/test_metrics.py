from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nebuladb.server.metrics import MAX_RPC_METHODS, OTHER_METHOD, Buckets, Metrics
from nebuladb.server.samples import GroupSample, QueueSample
from nebuladb.server.space import Amount, Reserves, Room, SpaceWatch


class Node:
    def groups(self) -> Iterable[GroupSample]:
        yield GroupSample(
            group=2,
            keyspace="default",
            leading=True,
            has_leader=True,
            term=7,
            committed=100,
            applied=99,
            last_index=101,
            log_start=1,
            revision=55,
            leader_changes=3,
            proposals=90,
            proposals_refused=4,
        )

    def queues(self) -> Iterable[QueueSample]:
        yield QueueSample("log_batch_bytes", 10, 1000)

    def alarms(self) -> Mapping[str, int]:
        return {"other": 2}

    def snapshots(self) -> Mapping[str, int]:
        return {"sent": 3, "received_bytes": 500, "received_ms": 1_500}


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, read back with Prometheus's own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(b"".join(metrics.parts()).decode())
        for sample in family.samples
    }


def test_the_contract_s_counter_is_there_from_the_start() -> None:
    assert scrape(Metrics())["nebula_log_fsync_total", ()] == 0


def test_what_is_counted_is_shown() -> None:
    metrics = Metrics()
    metrics.log_fsync(0.0002)
    metrics.log_fsync(99.0)
    metrics.log_batch(300)
    metrics.applied(3, 0.5)
    metrics.rpc("/nebula.v1.KV/Put", "OK", 0.002)
    metrics.rpc("/nebula.v1.KV/Put", "UNAVAILABLE", 0.002)
    metrics.read_from(Node())
    shown = scrape(metrics)
    group = (("group", "2"), ("keyspace", "default"))
    assert shown["nebula_log_fsync_total", ()] == 2
    assert shown["nebula_log_fsync_seconds_bucket", (("le", "0.0001"),)] == 0
    assert shown["nebula_log_fsync_seconds_bucket", (("le", "0.00025"),)] == 1
    assert shown["nebula_log_fsync_seconds_bucket", (("le", "+Inf"),)] == 2
    assert shown["nebula_log_fsync_seconds_sum", ()] == 99.0002
    assert shown["nebula_log_batch_bytes_count", ()] == 1
    assert shown["nebula_apply_entries_total", ()] == 3
    method = ("method", "/nebula.v1.KV/Put")
    assert shown["nebula_rpc_handled_total", (("code", "UNAVAILABLE"), method)] == 1
    assert shown["nebula_rpc_seconds_count", (method,)] == 2
    assert shown["nebula_raft_leader", group] == 1
    assert shown["nebula_raft_term", group] == 7
    assert shown["nebula_raft_commit", group] == 100
    assert shown["nebula_raft_applied", group] == 99
    assert shown["nebula_raft_leader_changes_total", group] == 3
    assert shown["nebula_raft_proposals_total", group] == 90
    assert shown["nebula_queue_size", (("queue", "log_batch_bytes"),)] == 10
    assert shown["nebula_snapshots_total", (("end", "sent"),)] == 3
    assert shown["nebula_snapshots_total", (("end", "failed"),)] == 0
    assert shown["nebula_snapshot_bytes_total", (("direction", "received"),)] == 500
    assert shown["nebula_snapshot_seconds_total", ()] == 1.5
    assert shown["nebula_queue_bound", (("queue", "log_batch_bytes"),)] == 1000


def test_the_disk_s_room_is_shown_once_somebody_looked(tmp_path: Path) -> None:
    metrics = Metrics()
    watch = SpaceWatch(
        tmp_path, Reserves(Amount(0, 100), Amount(0, 0)), lambda space, text: None, lambda _: Room(1_000, 400)
    )
    metrics.read_room_from(watch)
    assert ("nebula_disk_free_bytes", ()) not in scrape(metrics)
    watch.look()
    shown = scrape(metrics)
    names = ("nebula_disk_bytes", "nebula_disk_free_bytes", "nebula_disk_low_bytes")
    assert [shown[name, ()] for name in names] == [1_000, 400, 100]


def test_made_up_methods_fill_no_memory() -> None:
    metrics = Metrics()
    for number in range(MAX_RPC_METHODS + 50):
        metrics.rpc(f"/made/up{number}", "UNIMPLEMENTED", 0.0)
    assert len(metrics.rpc_handled) == len(metrics.rpc_seconds) == MAX_RPC_METHODS + 1
    assert metrics.rpc_handled[OTHER_METHOD, "UNIMPLEMENTED"] == 50


@given(st.lists(st.floats(0, 10)), st.lists(st.floats(0, 10), unique=True, min_size=1).map(sorted))
def test_buckets_count_as_prometheus_defines_it(values: list[float], bounds: list[float]) -> None:
    buckets = Buckets(bounds)
    for value in values:
        buckets.observe(value)
    expected = [float(sum(value <= bound for value in values)) for bound in bounds]
    assert [count for _, count in buckets.cumulative()] == [*expected, float(len(values))]
    assert buckets.count == len(values)

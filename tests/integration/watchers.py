"""Thousands of watchers on one node while puts go on and leaders die: every event once, in order.

``python -m tests.integration.watchers --watchers 10000 --keys 1000 --seconds 60`` starts three nodes and sets
`--watchers` watchers, evenly over `--keys` keys, on one that doesn't lead, as streams of the etcd face. Each second
every key is put (or `--rate` puts are spread over them), then one range delete takes all keys, which every watcher is
told of. At a third and at two thirds of the time the leader is killed and revived; watchers whose node it was go on at
another one, from where they were. One more watcher wants everything and reads a response in three seconds.

At the end the history of another node says what happened: every acknowledged put must be there, and every watcher must
have been told exactly what concerns its key, in order, once. The node's outboxes must have kept their bound. One line
of key=value pairs; exit 1 on a violation. `--self-test` withholds one event from the checker, which must object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from nebuladb.ids import ETCD_GROUP
from nebuladb.pb.etcd import kv_pb2
from nebuladb.pb.etcd.mvcc_pb2 import Event
from nebuladb.rpc.engine import engine_of
from tests.integration.cluster import Cluster
from tests.integration.ears import Ear

PREFIX: Final = b"watched/"
PREFIX_END: Final = b"watched0"
WATCHERS_PER_STREAM: Final = 500
IN_FLIGHT: Final = 64
"""Puts on their way at once."""
CALL_SECONDS: Final = 5.0
BURSTS: Final = 100
"""A second's puts are made in so many parts."""
SLOW_SECONDS: Final = 3.0
"""Between two responses that the slow watcher reads; a peer that takes nothing for a minute is cut off."""
CATCH_UP_SECONDS: Final = 120.0
MAX_WRONG: Final = 20
WITHHELD: Final = 10
"""The response of which the self-test keeps an event back."""
SLACK: Final = 2.0
"""Outboxes may take more than their share by one batch each, so that none stands still."""


@dataclass(slots=True)
class Report:
    """What a run did and found."""

    watchers: int = 0
    keys: int = 0
    puts: int = 0
    unknown: int = 0
    deletes: int = 0
    seconds: float = 0.0
    events: int = 0
    moved: int = 0
    """Streams that had to go on at another node, as often as they did."""
    kills: int = 0
    lags: list[float] = field(default_factory=list)
    slow_behind: int = 0
    """Revisions that the slow watcher was behind when the puts ended."""
    outboxes: float = 0.0
    """The most that outboxes held, as a part of their bound."""
    rss: tuple[float, float] = (0.0, 0.0)
    """MiB of the watchers' first node, before the puts and at most."""
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line of key=value pairs."""
        lags = sorted(self.lags) or [0.0]
        return (
            f"watchers={self.watchers} keys={self.keys} puts={self.puts} unknown={self.unknown} "
            f"puts_a_second={self.puts / (self.seconds or 1):.0f} deletes={self.deletes} events={self.events} "
            f"kills={self.kills} moved={self.moved} lag_ms={statistics.median(lags) * 1e3:.0f} "
            f"lag_ms_p99={lags[int(len(lags) * 0.99)] * 1e3:.0f} slow_behind={self.slow_behind} "
            f"outboxes={self.outboxes:.3f} rss_mib={self.rss[0]:.0f},{self.rss[1]:.0f} "
            f"violations={len(self.wrong)} seconds={self.seconds:.1f}"
        )


class Writer:
    """Puts and range deletes through whichever node answers."""

    def __init__(self, cluster: Cluster) -> None:
        self._endpoints = cluster.endpoints
        self._channels = [engine_of().insecure_channel(address) for address in cluster.endpoints]
        self._at = 0
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self.acknowledged: list[tuple[int, bytes]] = []
        """(revision, key)"""
        self.deletes: list[int] = []
        self.unknown = 0

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def call(self, method: str, request: Any, response: Any) -> Any:
        """The response, or None: then nobody knows."""
        at = self._at
        call = self._channels[at].unary_unary(
            f"/etcdserverpb.KV/{method}", type(request).SerializeToString, response.FromString
        )
        try:
            return await call(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError:
            self._at = (at + 1) % len(self._channels)
            return None

    async def put(self, key: bytes) -> int:
        """The revision, or 0: then nobody knows. The value says when."""
        async with self._room:
            request = kv_pb2.PutRequest(key=key, value=b"%d %s" % (time.monotonic_ns(), b"v" * 80))
            answer = await self.call("Put", request, kv_pb2.PutResponse)
        if answer is None:
            self.unknown += 1
            return 0
        self.acknowledged.append((answer.header.revision, key))
        return int(answer.header.revision)

    async def put_for_certain(self, key: bytes) -> int:
        """The revision of a put that was done."""
        while not (revision := await self.put(key)):
            pass
        return revision

    async def delete_all(self) -> None:
        """What every watcher is told of."""
        request = kv_pb2.DeleteRangeRequest(key=PREFIX, range_end=PREFIX_END)
        answer = await self.call("DeleteRange", request, kv_pb2.DeleteRangeResponse)
        if answer is not None and answer.deleted:
            self.deletes.append(answer.header.revision)

    async def second(self, keys: Sequence[bytes], rate: int, number: int) -> None:
        """A second's puts, spread over it, and the delete."""
        began = time.monotonic()
        tasks: list[asyncio.Task[int]] = []
        for burst in range(BURSTS):
            places = range(rate * burst // BURSTS, rate * (burst + 1) // BURSTS)
            tasks += [asyncio.create_task(self.put(keys[(number * rate + place) % len(keys)])) for place in places]
            await asyncio.sleep(max(0.0, began + (burst + 1) / BURSTS - time.monotonic()))
        await asyncio.gather(*tasks)
        await self.delete_all()


class Run:
    """One run over a started cluster."""

    def __init__(
        self, cluster: Cluster, watchers: int, keys: int, *, rate: int = 1000, per_stream: int = WATCHERS_PER_STREAM,
        self_test: bool = False,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._rate = rate
        self._keys = [PREFIX + b"%06d" % number for number in range(keys)]
        self._wanted = [(self._keys[number % keys], b"") for number in range(watchers)]
        self._per_stream = per_stream
        self._responses = 0
        self._withheld = WITHHELD if self_test else 0
        self._home = 0
        self._hurry = asyncio.Event()
        self._writer = Writer(cluster)
        self.report = Report(watchers=watchers, keys=keys)

    async def run(self, seconds: float, kills: int = 2) -> Report:
        """Watch, write, kill; then judge."""
        leader = await asyncio.to_thread(self._cluster.leader, ETCD_GROUP)
        self._home = next(node for node in self._cluster.all if node != leader)
        since = await self._writer.put_for_certain(PREFIX)
        self._writer.acknowledged.clear()
        ears = [
            Ear(self._wanted[place : place + self._per_stream], since, self._addresses, spoil=self._spoil)
            for place in range(0, len(self._wanted), self._per_stream)
        ]
        slow = Ear([(PREFIX, PREFIX_END)], since, self._addresses, prev_kv=True, pause=self._dawdle)
        tasks = [asyncio.create_task(ear.listen()) for ear in (*ears, slow)]
        try:
            await asyncio.gather(*(ear.ready.wait() for ear in (*ears, slow)))
            await self._load(seconds, kills)
            await self._judge(since, ears, slow)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._writer.close()
        return self.report

    def _addresses(self) -> list[str]:
        """All watchers on one node, and on the next one when it is dead."""
        endpoints = self._cluster.endpoints
        return [endpoints[(self._home + number) % len(endpoints)] for number in range(len(endpoints))]

    async def _dawdle(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), SLOW_SECONDS)

    def _spoil(self, events: Sequence[Event]) -> Sequence[Event]:
        self._responses += 1
        return events[1:] if self._responses == self._withheld else events

    # --- what goes on

    async def _load(self, seconds: float, kills: int) -> None:
        report, began = self.report, time.monotonic()
        rss = await asyncio.to_thread(self._rss)
        report.rss = rss, rss
        looking = asyncio.create_task(self._look())
        killing = asyncio.create_task(self._kill(seconds, kills))
        number = 0
        while time.monotonic() < began + seconds or not killing.done():
            await self._writer.second(self._keys, self._rate, number)
            number += 1
        await killing
        looking.cancel()
        report.seconds = time.monotonic() - began
        report.puts, report.unknown = len(self._writer.acknowledged), self._writer.unknown
        report.deletes = len(self._writer.deletes)

    async def _kill(self, seconds: float, kills: int) -> None:
        """The leader, so often, each time revived."""
        cluster = self._cluster
        for _ in range(kills):
            await asyncio.sleep(seconds / (kills + 1))
            leader = await asyncio.to_thread(cluster.leader, ETCD_GROUP)
            await asyncio.to_thread(cluster.kill, leader)
            self.report.kills += 1
            await asyncio.to_thread(cluster.leader, ETCD_GROUP)
            cluster.start(leader)
            await asyncio.to_thread(cluster.wait_ready)

    async def _look(self) -> None:
        """How much is kept for watchers."""
        while True:
            await asyncio.sleep(1)
            for node in self._cluster.running:
                used = await asyncio.to_thread(self._outboxes, node)
                self.report.outboxes = max(self.report.outboxes, used)
            with contextlib.suppress(OSError):
                rss = await asyncio.to_thread(self._rss)
                self.report.rss = self.report.rss[0], max(self.report.rss[1], rss)

    def _outboxes(self, node: int) -> float:
        used = limit = 0.0
        for line in self._cluster.admin(node, "/metrics")[1].splitlines():
            if line.startswith('nebula_queue_size{queue="outboxes_bytes"}'):
                used = float(line.split()[-1])
            elif line.startswith('nebula_queue_bound{queue="outboxes_bytes"}'):
                limit = float(line.split()[-1])
        return used / limit if limit else 0.0

    def _rss(self) -> float:
        for line in Path(f"/proc/{self._cluster.pid(self._home)}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    # --- what is found

    async def _judge(self, since: int, ears: Sequence[Ear], slow: Ear) -> None:
        report, writer = self.report, self._writer
        last = await writer.put_for_certain(PREFIX + b"last")
        report.slow_behind = last - slow.told[0].last
        self._hurry.set()
        if not all(await asyncio.gather(*(ear.caught_up(last, CATCH_UP_SECONDS) for ear in (*ears, slow)))):
            report.wrong.append("not all watchers were told everything in time")
        events = await self._history(since, last)
        happened: dict[bytes, list[int]] = {}
        for key, revision in events:
            happened.setdefault(key, []).append(revision)
        report.wrong += _missing(writer, events)
        for ear in ears:
            report.events += ear.events
            report.moved += ear.connections - 1
            report.lags += ear.lags
            report.wrong += ear.wrong
            for told in ear.told:
                if list(told.revisions) != (expected := happened.get(told.key, [])):
                    report.wrong.append(_difference(told.key, list(told.revisions), expected))
        everything = [revision for _, revision in events]
        if list(slow.told[0].revisions) != everything:
            report.wrong.append(_difference(b"everything", list(slow.told[0].revisions), everything))
        report.wrong += slow.wrong
        if report.outboxes > SLACK:
            report.wrong.append(f"outboxes held {report.outboxes:.1f} times their bound")
        del report.wrong[MAX_WRONG:]

    async def _history(self, since: int, last: int) -> list[tuple[bytes, int]]:
        """(key, revision) of every change, negative of deletions, in order, as a node says that serves no watchers."""
        others = self._addresses()[1:]
        history: list[tuple[bytes, int]] = []

        def note(events: Sequence[Event]) -> Sequence[Event]:
            history.extend(
                (event.kv.key, event.kv.mod_revision if event.type == Event.PUT else -event.kv.mod_revision)
                for event in events
            )
            return events

        ear = Ear([(PREFIX, PREFIX_END)], since, lambda: others, spoil=note)
        task = asyncio.create_task(ear.listen())
        try:
            if not await ear.caught_up(last, CATCH_UP_SECONDS):
                self.report.wrong.append("the history could not be read")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return history


def _missing(writer: Writer, events: Sequence[tuple[bytes, int]]) -> list[str]:
    """What was acknowledged and did not happen."""
    puts = {(revision, key) for key, revision in events}
    deletes = {-revision for _, revision in events if revision < 0}
    wrong = [f"put {one} was acknowledged and did not happen" for one in writer.acknowledged if one not in puts]
    return wrong + [f"delete {one} was acknowledged and did not happen" for one in writer.deletes if one not in deletes]


def _difference(key: bytes, told: list[int], expected: list[int]) -> str:
    place = next((i for i, (one, other) in enumerate(zip(told, expected, strict=False)) if one != other), None)
    if place is None:
        place = min(len(told), len(expected))
    return (
        f"{key!r}: told {len(told)} events, {len(expected)} happened; from the {place + 1}th on "
        f"{told[place : place + 3]} for {expected[place : place + 3]}"
    )


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        cluster.start()
        cluster.wait_ready()

        async def run() -> Report:
            one = Run(cluster, arguments.watchers, arguments.keys, rate=arguments.rate, self_test=arguments.self_test)
            return await one.run(arguments.seconds, arguments.kills)

        report = asyncio.run(run())
    for wrong in report.wrong:
        print(wrong, file=sys.stderr)
    print(report.line())
    if arguments.self_test:
        return 0 if report.wrong else 1
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

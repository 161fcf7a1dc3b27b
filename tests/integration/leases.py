"""Thousands of leases over killed leaders and clocks that are wrong: none ends early, and none much too late.

``python -m tests.integration.leases --leases 20000`` starts three nodes, one follower of which has a clock that is an
hour ahead where libfaketime is installed, grants `--leases` leases through the etcd face, each with a key of its own,
and keeps a third of them alive for a while. While they expire, leadership is given to the node with the wrong clock,
which is then killed. A lease may go when its TTL has passed since it was asked for or, if it was kept alive, since that
was last asked for; it must go when its TTL, 2 s and the time without a leader have passed since that was answered, or
since the last try. Early is judged by this process's monotonic clock, from before the request left; late, from after
the answer came, and by when the deletion of its key was told.

One line of key=value pairs; exit 1 if a lease went early, late or not at all, or if its key and it did not go together.
`--self-test` judges as if each lease had been granted a second longer than it was, which must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from jepsen.clocks import find
from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from nebuladb.ids import ETCD_GROUP
from nebuladb.pb.etcd import kv_pb2, lease_pb2
from nebuladb.pb.etcd.mvcc_pb2 import Event
from nebuladb.rpc.engine import engine_of
from tests.integration.cluster import Cluster
from tests.integration.ears import Ear

PREFIX: Final = b"leased/"
PREFIX_END: Final = b"leased0"
IN_FLIGHT: Final = 256
KEYS_A_TXN: Final = 100
CALL_SECONDS: Final = 5.0
PATIENCE: Final = 60.0
LATE_SECONDS: Final = 2.0
"""Beyond the time without a leader."""
AHEAD: Final = 3600
"""Seconds by which the wrong clock is ahead."""
KEPT: Final = 3
"""One lease in so many is kept alive."""
MAX_WRONG: Final = 20


@dataclass(slots=True)
class Lease:
    """What this process knows of one; times on its monotonic clock."""

    id: int
    ttl: int
    begun: float
    """Before the last successful renewal, or the grant, was asked for."""
    heard: float
    """After the last renewal that may have been done was answered, or failed."""
    gone: float = 0.0
    """When the deletion of its key was told."""

    @property
    def early(self) -> float:
        """Seconds by which it went too early, if positive."""
        return self.begun + self.ttl - self.gone

    def late(self, leaderless: Sequence[tuple[float, float]]) -> float:
        """Seconds by which it went after its time, without those in which nobody led."""
        due = self.heard + self.ttl
        without = sum(max(0.0, min(self.gone, end) - max(self.heard, start)) for start, end in leaderless)
        return self.gone - due - without


@dataclass(slots=True)
class Report:
    """What a run did and found."""

    leases: int = 0
    renewals: int = 0
    kills: int = 0
    ahead: bool = False
    """A node whose clock is an hour ahead led."""
    leaderless: list[tuple[float, float]] = field(default_factory=list)
    earliest: float = 0.0
    """The least time, in seconds, from the end of a TTL to its lease's; the bar: not negative."""
    latest: float = 0.0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line of key=value pairs."""
        without = sum(end - start for start, end in self.leaderless)
        return (
            f"leases={self.leases} renewals={self.renewals} kills={self.kills} clock_ahead_led={self.ahead} "
            f"leaderless_seconds={without:.2f} earliest_after_ttl={self.earliest:.3f} "
            f"latest_after_ttl={self.latest:.3f} violations={len(self.wrong)} seconds={self.seconds:.1f}"
        )


def clock(node: int, ahead: int) -> Mapping[str, str]:
    """The environment of a node: that of `ahead` has a clock that is an hour ahead, monotonic ones included."""
    library = find()
    if node != ahead or library is None:
        return {}
    return {"LD_PRELOAD": str(library), "FAKETIME": f"+{AHEAD}s", "FAKETIME_DONT_RESET": "1"}


class Run:
    """One run over a started cluster of three, in which `ahead` has the wrong clock (or nobody, if that is None)."""

    def __init__(self, cluster: Cluster, leases: int, ttls: tuple[int, int], ahead: int | None, seed: int = 1) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._wanted = leases
        self._ttls = ttls
        self._ahead = ahead
        self._leases: dict[int, Lease] = {}
        self._gone = 0
        self._all_gone = asyncio.Event()
        self._channels = [engine_of().insecure_channel(address) for address in cluster.endpoints]
        self._at = next(node for node in cluster.all if node != ahead)
        self.report = Report(leases=leases)

    async def run(self, kills: int = 2) -> Report:
        """Grant, keep, give leadership away, kill; then judge."""
        began = time.monotonic()
        since = (await self._sure("Put", kv_pb2.PutRequest(key=PREFIX), kv_pb2.PutResponse)).header.revision
        ear = Ear([(PREFIX, PREFIX_END)], since, self._addresses, spoil=self._told)
        listening = asyncio.create_task(ear.listen())
        try:
            await ear.ready.wait()
            await self._grant()
            keeping = asyncio.create_task(self._keep())
            await self._upset(kills)
            await keeping
            await self._wait()
            await self._judge(ear)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            for channel in self._channels:
                await channel.close()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _addresses(self) -> list[str]:
        endpoints = self._cluster.endpoints
        return [endpoints[(self._at + number) % len(endpoints)] for number in range(len(endpoints))]

    def _told(self, events: Sequence[Event]) -> Sequence[Event]:
        now = time.monotonic()
        for event in events:
            if event.type == Event.DELETE and (lease := self._leases.get(_lease_of(event.kv.key))):
                if lease.gone:
                    self.report.wrong.append(f"the key of lease {lease.id} went twice")
                lease.gone = now
                self._gone += 1
        if self._gone >= self._wanted:
            self._all_gone.set()
        return events

    # --- calls

    async def _call(self, method: str, request: Any, response: Any) -> Any:
        """A response, or None if none came."""
        at = self._at
        service = "Lease" if method.startswith("Lease") else "KV"
        call = self._channels[at].unary_unary(
            f"/etcdserverpb.{service}/{method}", type(request).SerializeToString, response.FromString
        )
        try:
            return await call(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError:
            if at == self._at:
                self._at = (at + 1) % len(self._channels)
            return None

    async def _sure(self, method: str, request: Any, response: Any) -> Any:
        """The response of a request that may be made more than once."""
        async with asyncio.timeout(PATIENCE):
            while (answer := await self._call(method, request, response)) is None:
                pass
        return answer

    # --- what goes on

    async def _grant(self) -> None:
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> None:
            ttl = self._rng.randint(*self._ttls)
            request = lease_pb2.LeaseGrantRequest(TTL=ttl, ID=number)
            async with room:
                begun = time.monotonic()
                if await self._call("LeaseGrant", request, lease_pb2.LeaseGrantResponse) is not None:
                    self._leases[number] = Lease(number, ttl, begun, time.monotonic())

        await asyncio.gather(*(one(number) for number in range(1, self._wanted + 1)))
        if len(self._leases) != self._wanted:
            self.report.wrong.append(f"{len(self._leases)} of {self._wanted} leases were granted")
        names = sorted(self._leases)
        for place in range(0, len(names), KEYS_A_TXN):
            txn = kv_pb2.TxnRequest()
            for name in names[place : place + KEYS_A_TXN]:
                txn.success.add().request_put.CopyFrom(kv_pb2.PutRequest(key=_key(name), lease=name))
            await self._sure("Txn", txn, kv_pb2.TxnResponse)

    async def _keep(self) -> None:
        """Renew every third lease at a half of its time, once, many on one stream."""
        kept = [lease for number, lease in sorted(self._leases.items()) if number % KEPT == 0]
        kept.sort(key=lambda lease: lease.begun + lease.ttl / 2)
        waiting: dict[int, float] = {}

        async def requests() -> AsyncIterator[lease_pb2.LeaseKeepAliveRequest]:
            for lease in kept:
                await asyncio.sleep(max(0.0, lease.begun + lease.ttl / 2 - time.monotonic()))
                waiting[lease.id] = time.monotonic()
                yield lease_pb2.LeaseKeepAliveRequest(ID=lease.id)

        call = self._channels[self._at].stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            lease_pb2.LeaseKeepAliveRequest.SerializeToString,
            lease_pb2.LeaseKeepAliveResponse.FromString,
        )(requests())
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for response in call:
                lease, begun = self._leases[response.ID], waiting.pop(response.ID)
                if response.TTL:
                    self.report.renewals += 1
                    lease.begun, lease.heard = begun, time.monotonic()
                elif time.monotonic() < lease.begun + lease.ttl:
                    self.report.wrong.append(f"lease {lease.id} was gone {lease.begun + lease.ttl - begun:.2f} s early")
        for number in waiting:
            self._leases[number].heard = time.monotonic()  # it may have been renewed

    async def _upset(self, kills: int) -> None:
        """Once the first leases expire, let the wrong clock lead, and kill leaders."""
        cluster = self._cluster
        first = min(lease.begun + lease.ttl for lease in self._leases.values())
        await asyncio.sleep(max(0.0, first - time.monotonic()))
        if self._ahead is not None:
            await self._lead(self._ahead)
        for number in range(kills):
            await asyncio.sleep(self._ttls[0] / (4 * kills) if number else 1.0)
            leader = await asyncio.to_thread(cluster.leader, ETCD_GROUP)
            start = time.monotonic()
            await asyncio.to_thread(cluster.kill, leader)
            self.report.kills += 1
            # Until an entry of the new leader's is applied: before that nothing can expire.
            await self._sure("Put", kv_pb2.PutRequest(key=b"upset"), kv_pb2.PutResponse)
            self.report.leaderless.append((start, time.monotonic()))
            cluster.start(leader)
            await asyncio.to_thread(cluster.wait_ready)

    async def _lead(self, node: int) -> None:
        """Give `node` the lead. The time of the change counts as one without a leader."""
        cluster = self._cluster
        status = await asyncio.to_thread(cluster.status, node)
        assert status is not None
        async with AsyncClient(cluster.endpoints) as client, asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(cluster.leader, ETCD_GROUP) != node:
                start = time.monotonic()
                with contextlib.suppress(NebulaError):
                    await client.transfer_leadership(ETCD_GROUP, int(str(status["node_id"]), 16))
                await self._sure("Put", kv_pb2.PutRequest(key=b"upset"), kv_pb2.PutResponse)
                self.report.leaderless.append((start, time.monotonic()))
        self.report.ahead = True

    # --- what is found

    async def _wait(self) -> None:
        """Until all are gone, or should be."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), self._ttls[1] + PATIENCE)

    async def _judge(self, ear: Ear) -> None:
        report = self.report
        leases = list(self._leases.values())
        report.wrong += ear.wrong
        report.wrong += [f"lease {lease.id} did not go" for lease in leases if not lease.gone]
        gone = [lease for lease in leases if lease.gone]
        report.wrong += [f"lease {lease.id} went {lease.early:.3f} s early" for lease in gone if lease.early > 0]
        late = [(lease, lease.late(report.leaderless)) for lease in gone]
        report.wrong += [f"lease {lease.id} went {by:.3f} s late" for lease, by in late if by > LATE_SECONDS]
        report.earliest = min((-lease.early for lease in gone), default=0.0)
        report.latest = max((by for _, by in late), default=0.0)
        listed = await self._sure("LeaseLeases", lease_pb2.LeaseLeasesRequest(), lease_pb2.LeaseLeasesResponse)
        left = [status.ID for status in listed.leases]
        report.wrong += [f"lease {one} is there, and its key is not" for one in left if one in self._leases]
        del report.wrong[MAX_WRONG:]

    def found_if_longer(self) -> bool:
        """Whether leases that ended as these did would be found too early if they had been granted a second more."""
        return any(lease.gone and lease.early + 1 > 0 for lease in self._leases.values())


def _key(lease: int) -> bytes:
    return PREFIX + b"%08d" % lease


def _lease_of(key: bytes) -> int:
    number = key.removeprefix(PREFIX)
    return int(number) if number.isdigit() else 0


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leases", type=int, default=20_000)
    parser.add_argument("--ttl", type=int, nargs=2, default=(30, 50), help="the least and the greatest, in seconds")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    ahead = 2 if find() is not None else None
    if ahead is None:
        print("no clock is ahead, for libfaketime is not installed (Debian: libfaketime)", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder), node_environ=lambda node: clock(node, -1 if ahead is None else ahead)) as cluster,
    ):
        cluster.start()
        cluster.wait_ready()

        async def run() -> tuple[Report, bool]:
            one = Run(cluster, arguments.leases, tuple(arguments.ttl), ahead)
            return await one.run(arguments.kills), one.found_if_longer()

        report, found = asyncio.run(run())
    for wrong in report.wrong:
        print(wrong, file=sys.stderr)
    print(report.line())
    if arguments.self_test:
        return 0 if found else 1
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

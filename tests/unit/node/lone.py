"""One node that serves alone: a real `Pump` over disks in memory that fail on order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.node import Node
from nebuladb.node.pump import Pump
from nebuladb.storage.log import LogStore
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.wire import put_request

SECONDS = 20.0
FOUNDING_GROUPS = 3
PUT = Command(Kind.PUT, put_request(b"k", b"v"))


class Clock:
    """Stands still but when told; elections are called by hand."""

    def __init__(self) -> None:
        self.time = 1_000

    def monotonic(self) -> int:
        return self.time

    def boottime(self) -> int:
        return self.time


class Nowhere:
    """Links and meter."""

    def send(self, frames: Iterable[tuple[int, bytes]]) -> None: ...
    def log_fsync(self, seconds: float) -> None: ...
    def log_batch(self, size: int) -> None: ...
    def applied(self, entries: int, seconds: float) -> None: ...


class Lone:
    """One node that serves alone."""

    def __init__(self, client_address: str = "") -> None:
        """Without a `client_address` it announces no addresses, as no node does that nobody reaches."""
        self.log, self.data = MemoryEngine(wal=True), MemoryEngine(wal=False)
        self.clock = Clock()
        founding = Founding(7, (Founder("n1", 11, "n1:2"),))
        self.node = Node(
            Identity(11, "n1", 7),
            founding,
            5,
            LogStore(self.log),
            self.data,
            random.Random(1),
            self.clock,
            client_address,
            "n1:2",
        )
        self.failures: list[BaseException] = []
        self.failed = asyncio.Event()
        self.pump = Pump(self.node, self.clock, Nowhere(), Nowhere(), self._fail)

    def _fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until `condition`."""
        async with asyncio.timeout(SECONDS):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def serve(self) -> None:
        """Until a write is answered. Time passes as fast as the loop turns."""
        self.pump.start()
        replicas = self.node.host.replicas
        while len(replicas) < FOUNDING_GROUPS or not all(replica.raft.leader for replica in replicas.values()):
            await self.tick()
        assert isinstance(await self.put(), Answer)

    async def tick(self) -> None:
        """50 ms pass."""
        self.clock.time += 50
        self.node.tick(self.clock.time, self.clock.time)
        self.pump.wake()
        await asyncio.sleep(0)

    def put(self, key: bytes = b"k") -> asyncio.Future[Answer]:
        """A write to `default`."""
        return self.pump.propose(DEFAULT_GROUP, Command(Kind.PUT, put_request(key, b"v")), SECONDS)

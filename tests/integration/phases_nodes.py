"""Nodes under load that are killed at phases of a snapshot install, or of a compaction; see ``phases``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nebuladb.client import Client
from nebuladb.errors import NebulaError
from nebuladb.server.verify import verify
from tests.integration.checker import Observation, check, drop_acknowledged
from tests.integration.cluster import Cluster, ClusterError
from tests.integration.listener import DAMAGE, Ear
from tests.integration.load import HASHED_GROUPS, Load
from tests.integration.test_snapshots import applied, log_start

if TYPE_CHECKING:
    from tests.integration.phases import Order

THINK_SECONDS: Final = 0.1
"""Of each writer: the checker looks at the whole history after each kill."""
BALLAST: Final = 500
VALUE: Final = 3_000
"""Keys beside the load's, and their bytes: a snapshot has a dozen chunks."""
HIT_SECONDS: Final = 15.0
"""A phase that isn't reached by then is not going to be."""
PROGRESS_SECONDS: Final = 60.0
AFTERWARDS: Final = 20
"""Writes that are acknowledged before what is there is compared."""
RECEIVER: Final = (
    "snapshot comes in",
    "chunk of a snapshot written",
    "snapshot written",
    "snapshot becomes current",
    "snapshot installed",
    "generation without use removed",
)
SENDER: Final = ("snapshot begun", "chunk of a snapshot read", "snapshot sent")
COMPACTION: Final = (
    "log cut",
    "data flush begun",
    "data flush done",
    "history compacted by rule",
    "slice of superseded rows deleted",
    "superseded rows deleted",
)
ENVIRON: Final = {
    "NEBULA_LOG_KEEP_ENTRIES": "50",
    "NEBULA_LOG_KEEP_SIZE": "64KiB",
    "NEBULA_AUTO_COMPACTION_MODE": "revision",
    "NEBULA_AUTO_COMPACTION_RETENTION": "100",
    "NEBULA_MEMORY": "64MiB",
}


class Nodes(Cluster):
    """Three, with an ear each, and a load over them."""

    load: Load

    def __init__(self, directory: Path, *, flushes: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        heard = (*RECEIVER, *SENDER, *COMPACTION)
        self.ears = [Ear(directory / f"ear{node}", heard, flushes=flushes) for node in range(3)]
        super().__init__(directory, environ=ENVIRON, node_environ=lambda node: self.ears[node].environ)
        self._last: Observation | None = None

    @asynccontextmanager
    async def serving(self, rng: random.Random) -> AsyncIterator[None]:
        """They run, with some data, and are written to."""
        self.start()
        await asyncio.to_thread(self.wait_ready)
        await asyncio.to_thread(self._fill, rng)
        self.load = Load(self.endpoints, rng, think=THINK_SECONDS)
        self.load.start()
        try:
            yield
        finally:
            await self.load.close()

    def _fill(self, rng: random.Random) -> None:
        with Client(self.endpoints) as client:
            for number in range(BALLAST):
                client.put(b"ballast/%d" % number, rng.randbytes(VALUE))

    async def dies(self, node: int) -> bool:
        """Whether it ends by the order within reach."""
        with suppress(ClusterError):
            await asyncio.to_thread(self.wait_exit, node, HIT_SECONDS)
            return True
        return False

    async def waits(self, condition: Callable[[], bool], what: str) -> None:
        """As `wait_for`."""
        await asyncio.to_thread(self.wait_for, condition, what, PROGRESS_SECONDS)

    async def comes_back(self, *nodes: int) -> list[str]:
        """Check what lies in the directories of dead nodes, start them, and compare all there is; what is wrong."""
        wrong = [
            f"n{node + 1}: {finding.part}: {finding.problem}"
            for node in nodes
            for finding in await asyncio.to_thread(lambda node=node: list(verify(self.data_dir(node))))  # type: ignore[misc]
            if finding.problem
        ]
        for node in nodes:
            self.ears[node].release()
        self.start(*nodes)
        return wrong + await self.compared()

    async def compared(self) -> list[str]:
        """All nodes are ready and have caught up; what is wrong with what they hold, or have found."""
        await asyncio.to_thread(self.wait_ready)
        if not await self.load.wait_acknowledged(self.load.acknowledged + AFTERWARDS, PROGRESS_SECONDS):
            return [f"no writes go through; {self.log_tails()}"]
        await self.load.pause()
        try:
            observations = [await self.load.observe(node) for node in self.all]
            hashes = {group: await self.load.state_hashes(group) for group in HASHED_GROUPS}
        except Exception as error:
            return [f"a quiet cluster can't be read: {error!r}; {self.log_tails()}"]
        self._last = observations[-1]
        wrong = check(self.load.history, observations)
        wrong += [f"group {group}: states differ" for group, found in hashes.items() if len(set(found)) != 1]
        for node, ear in enumerate(self.ears):
            wrong += [f"n{node + 1}: {name}" for name in ear.heard if name in DAMAGE]
        self.load.resume()
        return wrong

    def corrupted_is_found(self) -> bool:
        """Whether the checker sees it if one acknowledged write is missing in what was read last."""
        dropped = drop_acknowledged(self.load.history, self._last) if self._last else None
        return dropped is not None and bool(check(self.load.history, [dropped]))

    def applied(self, node: int) -> int:
        """Index up to which it has the shard."""
        return applied(self, node)


class _Kind:
    """What both have in common."""

    name: str
    phases: Sequence[str]

    def __init__(self, nodes: Nodes, rng: random.Random) -> None:
        self.violations: list[str] = []
        self._nodes = nodes
        self._rng = rng

    async def kill(self, order: Order) -> str:
        try:
            return await self._kill(order)
        except (ClusterError, NebulaError) as error:
            self.violations.append(f"{self.name}, {order}: {error}; {self._nodes.log_tails()}")
            return ""

    async def _kill(self, order: Order) -> str:
        raise NotImplementedError

    async def _dead(self, victim: int, order: Order) -> str:
        """Wait for the death of `victim`; the phase that it was in, or empty, and then it is killed all the same."""
        if not await self._nodes.dies(victim):
            await asyncio.to_thread(self._nodes.kill, victim)
            return ""
        passed = [name for name in self._nodes.ears[victim].heard if name in self.phases]
        return passed[-1]

    async def _check(self, order: Order, *dead: int) -> None:
        wrong = await self._nodes.comes_back(*dead)
        self.violations += [f"{self.name}, {order}: {text}" for text in wrong]


class Install(_Kind):
    """A follower is away until the others have cut their logs."""

    name = "install"
    phases = (*RECEIVER, *SENDER)

    async def _kill(self, order: Order) -> str:
        nodes = self._nodes
        leader = await asyncio.to_thread(nodes.leader)
        late = (leader + self._rng.randint(1, 2)) % 3
        had = nodes.applied(late)
        await asyncio.to_thread(nodes.kill, late)
        others = [node for node in nodes.all if node != late]
        await nodes.waits(lambda: all(log_start(nodes, node) > had + 1 for node in others), "the logs are cut")
        victim = late if order.phase in RECEIVER else await asyncio.to_thread(nodes.leader)
        for ear in nodes.ears:
            ear.forget()
        nodes.ears[victim].order(*order)
        nodes.start(late)
        hit = await self._dead(victim, order)
        await self._check(order, victim)
        return hit


class Compaction(_Kind):
    """Any node, while it serves."""

    name = "compaction"
    phases = COMPACTION

    async def _kill(self, order: Order) -> str:
        nodes = self._nodes
        victim = self._rng.choice(list(nodes.all))
        if order.phase == "history compacted by rule":
            victim = await asyncio.to_thread(nodes.leader)
        for ear in nodes.ears:
            ear.forget()
        nodes.ears[victim].order(*order)
        hit = await self._dead(victim, order)
        await self._check(order, victim)
        return hit

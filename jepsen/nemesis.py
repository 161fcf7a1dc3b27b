"""The nemeses: each does a `Fault` of the schedule to the nodes or the network, and undoes it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

from jepsen.churn import churn
from jepsen.clocks import Clocks
from jepsen.network import Delay, Network
from jepsen.partitions import NOBODY, Shape, blocked
from jepsen.schedule import Fault, victims
from tests.integration import powerfail
from tests.integration.cluster import Cluster, ClusterError

FLAP_SECONDS: Final = (0.2, 0.8)


class Field:
    """What nemeses share: the nodes, who has whom in hand, and what was done."""

    def __init__(self, cluster: Cluster, network: Network, clocks: Clocks, records: Path | None, rng: Random) -> None:
        """`records`: where the preloaded library keeps what was synced, for power cuts."""
        self.cluster = cluster
        self.network = network
        self.clocks = clocks
        self.rng = rng
        self.done: Counter[str] = Counter()
        """Nemesis → nodes it hurt, or times it hurt the network."""
        self.log: list[str] = []
        self.deaths: set[int] = set()
        """Nodes that ended by themselves."""
        self.leader: int | None = None
        """As last seen."""
        self.changing = False
        """Members are; one change at a time."""
        self._records = records
        self._taken: set[int] = set()

    def records(self, node: int) -> Path:
        """What was synced by this node."""
        assert self._records is not None
        return self._records / f"n{node + 1}.synced"

    def wipe(self, node: int) -> None:
        """Empty its directory, but for its configuration; what is in it when it starts counts as durable."""
        for path in self.cluster.data_dir(node).iterdir():
            if path != self.cluster.members[node].file:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.records(node), ignore_errors=True)

    @contextmanager
    def take(self, fault: Fault) -> Iterator[list[int]]:
        """The victims of a fault, which are no other's meanwhile."""
        chosen = victims(fault, self.leader, frozenset(self._taken))
        # Whoever takes a node down starts it before he lets go.
        dead = set(chosen) - set(self.cluster.running)
        self.deaths.update(dead)
        self._taken.update(chosen)
        try:
            yield chosen
        finally:
            self._taken.difference_update(chosen)

    def note(self, fault: Fault, what: str, count: int = 1) -> None:
        """It hurt so many times; 0: it was in vain."""
        if count:
            self.done[fault.kind] += count
        self.log.append(f"{fault.start:7.2f} s, {fault.length:.2f} s long: {fault.kind}: {what}")

    def names(self, nodes: Sequence[int]) -> str:
        """For the log; the leader has a star."""
        return ",".join(f"n{node + 1}{'*' if node == self.leader else ''}" for node in sorted(nodes)) or "nobody"


async def kill(field: Field, fault: Fault) -> None:
    """SIGKILL; started again when the fault is over."""
    with field.take(fault) as nodes:
        await _down(field, fault, nodes)


async def powercut(field: Field, fault: Fault) -> None:
    """SIGKILL, and what was not synced is lost."""
    with field.take(fault) as nodes:
        await _down(field, fault, nodes, cut=True)


async def restart(field: Field, fault: Fault) -> None:
    """All nodes: the plain way, by SIGTERM, or SIGKILL for all at once."""
    with field.take(fault) as nodes:
        if fault.leader:
            await _down(field, fault, nodes)
            return
        running = [node for node in nodes if node in field.cluster.running]
        try:
            if running:
                field.note(fault, f"SIGTERM for {field.names(running)}", len(running))
                await asyncio.to_thread(field.cluster.stop, *running)
            await asyncio.sleep(fault.length)
        finally:
            _start(field, nodes)


async def _down(field: Field, fault: Fault, nodes: Sequence[int], *, cut: bool = False) -> None:
    running = [node for node in nodes if node in field.cluster.running]
    field.cluster.kill(*running)
    if running:
        field.note(fault, f"SIGKILL for {field.names(running)}", len(running))
    try:
        if cut:
            for node in running:
                directory = field.cluster.data_dir(node)
                report = await asyncio.to_thread(powerfail.cut, directory, field.records(node), field.rng)
                field.log.append(f"          n{node + 1} lost {report.lost} bytes and {len(report.removed)} files")
        await asyncio.sleep(fault.length)
    finally:
        _start(field, nodes)


def _start(field: Field, nodes: Sequence[int]) -> None:
    """Those that are down. In this thread: a node dies with the thread that started it."""
    down = [node for node in sorted(nodes) if node not in field.cluster.running]
    if down:
        field.cluster.start(*down)


async def pause(field: Field, fault: Fault) -> None:
    """SIGSTOP for a while."""
    with field.take(fault) as nodes:
        running = [node for node in nodes if node in field.cluster.running]
        if not running:
            return
        with suppress(ProcessLookupError), field.cluster.paused(*running):
            field.note(fault, f"SIGSTOP for {field.names(running)}", len(running))
            await asyncio.sleep(fault.length)


async def partition(field: Field, fault: Fault) -> None:
    """Some can't hear some others."""
    order = victims(fault, field.leader, frozenset())
    order += [node for node in fault.order if node not in order]
    pairs = blocked(fault.shape, order)
    loop = asyncio.get_running_loop()
    end = loop.time() + fault.length
    held = 0
    try:
        while (left := end - loop.time()) > 0:
            held += await field.network.block(pairs)
            if fault.shape is not Shape.FLAPPING:
                await asyncio.sleep(left)
                break
            await asyncio.sleep(min(left, field.rng.uniform(*FLAP_SECONDS)))
            held += await field.network.block(NOBODY)
            await asyncio.sleep(field.rng.uniform(*FLAP_SECONDS))
    finally:
        held += await asyncio.shield(field.network.block(NOBODY))
        who = " ".join(f"n{a + 1}-/->n{b + 1}" for a, b in sorted(pairs))
        field.note(fault, f"{fault.shape}, {who}, {held} held back", min(held, 1))


async def latency(field: Field, fault: Fault) -> None:
    """Everything between nodes comes late, and some has to be sent again."""
    delay = Delay(fault.delay_ms, fault.delay_ms // 2, fault.loss)
    try:
        await field.network.delay(delay)
        await asyncio.sleep(fault.length)
    finally:
        slowed = await asyncio.shield(field.network.delay(None))
        what = f"{delay.ms} ms ± {delay.jitter_ms} ms, {delay.loss:.0%} lost, {slowed} slowed"
        field.note(fault, what, min(slowed, 1))


async def clock(field: Field, fault: Fault) -> None:
    """Clocks of some jump ahead, and stay there."""
    with field.take(fault) as nodes:
        for node in nodes:
            field.clocks.jump(node, fault.jump)
        running = [node for node in nodes if node in field.cluster.running]
        moved = [node for node in running if field.clocks.moves(field.cluster.pid(node))]
        if moved:
            field.note(fault, f"{field.names(moved)} jump {fault.jump} s ahead", len(moved))
        await asyncio.sleep(fault.length)


NEMESES: Final[Mapping[str, Callable[[Field, Fault], Awaitable[None]]]] = {
    "kill": kill,
    "pause": pause,
    "partition": partition,
    "latency": latency,
    "restart": restart,
    "clock": clock,
    "powercut": powercut,
    "churn": churn,
}


async def torment(field: Field, faults: Sequence[Fault]) -> None:
    """Do them all at their times. Raises what went wrong with doing them, which is no verdict on the product."""
    began = asyncio.get_running_loop().time()

    async def one(fault: Fault) -> None:
        await asyncio.sleep(began + fault.start - asyncio.get_running_loop().time())
        await NEMESES[fault.kind](field, fault)

    try:
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(one(fault))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def recover(cluster: Cluster) -> None:
    """Wake and start every node. Raises `ClusterError` that names one that ended by itself."""
    for node in cluster.all:
        if node in cluster.running:
            with suppress(ProcessLookupError):
                os.kill(cluster.pid(node), signal.SIGCONT)
    dead = [node for node in cluster.all if node not in cluster.running]
    if dead:
        raise ClusterError(f"{', '.join(f'n{node + 1}' for node in dead)} ended by itself; {cluster.log_tails()}")

"""Load, kill, restart, compare: what the crash and the power-cut runs share."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.integration.checker import MAX_VIOLATIONS, Kind, Observation, Result, check, drop_acknowledged
from tests.integration.cluster import Cluster, ClusterError
from tests.integration.load import HASHED_GROUPS, Load

MIN_ACKNOWLEDGED: Final = 200
"""Acknowledged writes that a cycle has to reach."""
BEFORE_KILL: Final = (20, 150)
"""The kill comes after a random number of acknowledged writes in this range."""
DURING_OUTAGE: Final = 40
"""Acknowledged writes that a surviving majority has to reach before the dead come back."""
PROGRESS_SECONDS: Final = 60.0
LEADER_SHARE: Final = 0.6
"""How often the leader is made to be among the victims."""
EVERYBODY_SHARE: Final = 0.25
"""How often all nodes are killed."""


@dataclass(slots=True)
class Report:
    """What a campaign did and found."""

    cycles: int = 0
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    kills: int = 0
    leader_kills: int = 0
    leader_changes: int = 0
    least: int = 0
    """Acknowledged writes of the poorest cycle."""
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line of key=value pairs."""
        return (
            f"cycles={self.cycles} acknowledged={self.acknowledged} failed={self.failed} unknown={self.unknown} "
            f"kills={self.kills} leader_kills={self.leader_kills} leader_changes={self.leader_changes} "
            f"least_in_a_cycle={self.least} violations={len(self.violations)} seconds={self.seconds:.1f}"
        )


class Campaign:
    """Cycles of load and kills over one started cluster.

    `after_kill(nodes)` runs while the killed nodes are down. `run` never raises for what the cluster does wrong: it
    becomes a violation of the report.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        after_kill: Callable[[list[int]], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
        everybody_share: float = EVERYBODY_SHARE,
    ) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._after_kill = after_kill
        self._say = say
        self._everybody_share = everybody_share
        self._terms: set[tuple[int, int]] = set()
        self.load = Load(cluster.endpoints, random.Random(self._rng.random()))
        self.observations: list[Observation] = []
        self.report = Report()

    async def run(self, cycles: int) -> Report:
        """Run `cycles` cycles, stopping at the first violation."""
        began = time.monotonic()
        try:
            self.load.start()
            for _ in range(cycles):
                await self._cycle(cycles)
                if self.report.violations:
                    break
        except ClusterError as error:
            self.report.violations.append(str(error))
        finally:
            await self.load.close()
        report = self.report
        if report.cycles == cycles and not report.leader_kills:
            report.violations.append("no leader was killed: the run proves too little")
        results = [operation.result for operation in self.load.history if operation.kind is not Kind.GET]
        report.failed, report.unknown = results.count(Result.FAILED), results.count(Result.UNKNOWN)
        report.acknowledged = self.load.acknowledged
        report.leader_changes = max(0, len(self._terms) - 1)
        report.seconds = time.monotonic() - began
        del report.violations[MAX_VIOLATIONS:]
        return report

    def corrupted_is_found(self) -> bool:
        """Whether the checker finds it when one acknowledged write is taken out of the last observation."""
        dropped = drop_acknowledged(self.load.history, self.observations[-1])
        return dropped is not None and bool(check(self.load.history, [*self.observations[:-1], dropped]))

    async def _cycle(self, cycles: int) -> None:
        load, cluster, report = self.load, self._cluster, self.report
        before = load.acknowledged
        await self._progress(before + self._rng.randint(*BEFORE_KILL), "with all nodes up")
        leader = await self._note_leader()
        victims = self._victims(leader, first=report.cycles == 0)
        await asyncio.to_thread(cluster.kill, *victims)
        report.kills += len(victims)
        report.leader_kills += leader in victims
        await asyncio.to_thread(self._after_kill, victims)
        survivors = len(cluster.running)
        if survivors > len(cluster.members) // 2:
            await self._progress(load.acknowledged + DURING_OUTAGE, f"with {survivors} nodes up")
            await self._note_leader()
        cluster.start(*victims)
        await asyncio.to_thread(cluster.wait_ready)
        await self._progress(before + MIN_ACKNOWLEDGED, "after the restart")
        await self._note_leader()
        await load.pause()
        await self._compare()
        load.resume()
        reached = load.acknowledged - before
        report.least = min(reached, report.least) if report.cycles else reached
        report.cycles += 1
        killed = ",".join(f"n{node + 1}" for node in victims)
        self._say(
            f"cycle {report.cycles}/{cycles}: killed {killed}; {reached} acknowledged; {len(report.violations)} wrong"
        )

    async def _progress(self, count: int, when: str) -> None:
        """`count` acknowledged writes in all, or the cluster is stuck."""
        if not await self.load.wait_acknowledged(count, PROGRESS_SECONDS):
            raise ClusterError(
                f"{when}, only {self.load.acknowledged} of {count} writes were acknowledged within "
                f"{PROGRESS_SECONDS:g} s; {self._cluster.log_tails()}"
            )

    async def _note_leader(self) -> int | None:
        """The leader of `default`, remembered for the count of changes."""
        leadership = await asyncio.to_thread(self._cluster.leadership)
        if leadership is None:
            return None
        self._terms.add(leadership)
        return leadership[1]

    def _victims(self, leader: int | None, *, first: bool) -> list[int]:
        """A random set of nodes; in the first cycle the leader is among them, so that every run has killed one."""
        everybody = list(self._cluster.all)
        if self._rng.random() < self._everybody_share:
            return everybody
        self._rng.shuffle(everybody)
        if leader is not None and (first or self._rng.random() < LEADER_SHARE):
            everybody.sort(key=lambda node: node != leader)
        return sorted(everybody[: self._rng.randint(1, len(everybody) - 1)])

    async def _compare(self) -> None:
        """The quiet moment: every node shows the keys, the checker judges, and the states' hashes are equal."""
        try:
            for node in self._cluster.all:
                self.observations.append(await self.load.observe(node))
            hashes = {group: await self.load.state_hashes(group) for group in HASHED_GROUPS}
        except Exception as error:
            raise ClusterError(f"a quiet cluster could not be read: {error!r}; {self._cluster.log_tails()}") from error
        self.report.violations += check(self.load.history, self.observations)
        self.report.violations += [
            f"group {group}: states differ: {', '.join(value.hex() for value in values)}"
            for group, values in hashes.items()
            if len(set(values)) != 1
        ]

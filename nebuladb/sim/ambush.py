"""Deaths at the moments that safety hangs on: a vote was given, a leader has begun its term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.raft import StateRole
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine

LONGEST_MS: Final = 1_500
"""Of one ambush: several elections, each begun by the death of whoever won the last."""
LOOK_MS: Final = 2
FRESH_MS: Final = 40
"""A leader dies within this time of its election: before its term's first entry reached anybody, or just after."""


class Ambush:
    """At times drawn from `Faults.ambush_every`, for a while, one of: a voter loses its power as somebody stands for
    election (a vote not yet durable is lost, and it votes again); each leader is killed as its term begins (the paper's
    figure 8: entries that nobody, one or a majority has, overwritten or revived by the next)."""

    def __init__(self, core: Core, machines: Sequence[Machine]) -> None:
        self._core = core
        self._machines = machines
        self._rng = core.stream("ambush")
        self._until = 0
        self._role = StateRole.FOLLOWER
        self._known: set[tuple[int, int, int]] = set()
        """(place, group, term) that were looked at."""
        self._later()

    def _later(self) -> None:
        mean = self._core.faults.ambush_every
        if mean:
            self._core.scheduler.after(1 + int(self._rng.expovariate(1 / mean)), self._lie_in_wait)

    def _lie_in_wait(self) -> None:
        self._role = self._rng.choice((StateRole.CANDIDATE, StateRole.LEADER))
        self._until = self._core.scheduler.now + self._rng.randrange(LONGEST_MS)
        self._core.hit(f"ambush on {'voters' if self._role is StateRole.CANDIDATE else 'leaders'}")
        self._look()

    def _look(self) -> None:
        core = self._core
        if not core.faults.ambush_every:
            return  # the faults are over
        for machine in self._machines:
            node = machine.node
            if node is None:
                continue
            for group, replica in node.host.replicas.items():
                raft = replica.raft
                at = (machine.place, group, raft.term)
                if raft.role is self._role and at not in self._known:
                    self._known.add(at)
                    self._strike(machine)
        if core.scheduler.now < self._until:
            core.scheduler.after(LOOK_MS, self._look)
        else:
            self._later()

    def _strike(self, machine: Machine) -> None:
        voters = self._role is StateRole.CANDIDATE
        victims = [other for other in self._machines if (other is machine) != voters and other.node is not None]
        if victims:
            delay = self._rng.randrange(FRESH_MS)
            self._core.scheduler.after(delay, self._kill, self._rng.choice(victims), voters)

    def _kill(self, machine: Machine, power: bool) -> None:
        if self._core.faults.ambush_every:
            machine.doom(power=power)

"""Harm at the moments that safety hangs on: a vote was given, a term has begun, a leader writes for itself alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from nebuladb.node.node import Node
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.network import Network

LONGEST_MS: Final = 5_000
"""Of one ambush: some elections."""
LOOK_MS: Final = 2
FRESH_MS: Final = 40
"""A leader dies within this time of its election: before its term's first entry reached anybody, or just after."""
ALONE_MS: Final = (900, 2_000)
"""How long a leader is cut off: the others elect one meanwhile."""
HUNG_MS: Final = 800
"""How much longer its disk may hang."""

_Strike = Callable[[Machine, int, Raft], None]


class Ambush:
    """At times drawn from `Faults.ambush_every`, for a while, one of three:

    - voters: while a leader is cut off somebody stands for election; then its voter dies, it is cut off itself, and the
      former leader stands in the same term. If the voter has forgotten its vote, both are elected;
    - leaders: each is killed as its term begins, or in the very turn in which it does, so that nobody else has what it
      wrote (the paper's figure 8: such entries are revived, or overwritten, by the next);
    - tails: a leader is cut off while its disk hangs. What it has appended is overwritten before it was durable.
    """

    def __init__(self, core: Core, machines: Sequence[Machine], network: Network) -> None:
        self._core = core
        self._machines = machines
        self._network = network
        self._rng = core.stream("ambush")
        self._until = 0
        self._strike: _Strike = self._leaders
        self._known: set[tuple[int, int, int, StateRole]] = set()
        """(place, group, term, role) that were looked at in this ambush."""
        self._apart: list[int] = []
        """Places of who was cut off, in their order."""
        core.scheduler.after(core.faults.calm, self._later)

    def _later(self) -> None:
        mean = self._core.faults.ambush_every
        if mean:
            self._core.scheduler.after(1 + int(self._rng.expovariate(1 / mean)), self._lie_in_wait)

    def _lie_in_wait(self) -> None:
        self._strike = self._rng.choice((self._voters, self._leaders, self._tails))
        self._until = self._core.scheduler.now + self._rng.randrange(LONGEST_MS)
        self._apart = []
        self._known.clear()
        self._core.hit(f"ambush: {self._strike.__name__.strip('_')}")
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
                at = (machine.place, group, raft.term, raft.role)
                if raft.role is not StateRole.FOLLOWER and at not in self._known:
                    self._known.add(at)
                    self._strike(machine, group, raft)
        if core.scheduler.now < self._until:
            core.scheduler.after(LOOK_MS, self._look)
        else:
            self._network.heal()
            self._later()

    # --- the three kinds ---------------------------------------------------------------------------------------------

    def _voters(self, machine: Machine, _: int, raft: Raft) -> None:
        if raft.role is StateRole.LEADER and not self._apart:
            self._apart = [machine.place]
            self._isolate(machine)
        elif raft.role is StateRole.CANDIDATE and len(self._apart) == 1 and machine.place != self._apart[0]:
            self._apart.append(machine.place)
            for other in self._machines:
                if other.place not in self._apart:
                    power = self._rng.random() < 0.5
                    self._core.scheduler.after(self._rng.randrange(FRESH_MS), partial(self._kill, other, power=power))
            self._core.scheduler.after(self._rng.randrange(2 * FRESH_MS), self._turn_over, machine)

    def _turn_over(self, machine: Machine) -> None:
        """Whoever was alone may talk again, and `machine` may not."""
        self._network.heal()
        self._isolate(machine)

    def _leaders(self, machine: Machine, group: int, raft: Raft) -> None:
        if raft.role is StateRole.CANDIDATE and self._rng.randrange(2):
            machine.doom(power=False, when=partial(_leads, group, raft.term))
        elif raft.role is StateRole.LEADER:
            self._core.scheduler.after(self._rng.randrange(FRESH_MS), partial(self._kill, machine, power=False))

    def _tails(self, machine: Machine, _: int, raft: Raft) -> None:
        if raft.role is StateRole.LEADER and not self._apart:
            self._apart = [machine.place]
            alone = self._rng.randrange(*ALONE_MS)
            self._until = self._core.scheduler.now + alone
            machine.disk.hangs_until = self._until + self._rng.randrange(HUNG_MS)
            self._isolate(machine)

    def _kill(self, machine: Machine, *, power: bool) -> None:
        if self._core.faults.ambush_every:
            machine.doom(power=power)

    def _isolate(self, machine: Machine) -> None:
        if self._core.faults.ambush_every:
            others = [other.place for other in self._machines if other is not machine]
            self._network.cut([pair for other in others for pair in ((other, machine.place), (machine.place, other))])


def _leads(group: int, term: int, node: Node) -> bool:
    replica = node.host.replicas.get(group)
    return replica is not None and replica.raft.role is StateRole.LEADER and replica.raft.term == term

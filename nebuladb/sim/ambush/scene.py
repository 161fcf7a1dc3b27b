"""Where and how long an ambush lasts, and what each of them does to nodes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.network import Network
from nebuladb.sim.place import Place

LONGEST_MS: Final = 5_000
"""Of one ambush: some elections."""
BEGUN_MS: Final = (100, 600)
"""After a leader's election: by then clients write through it."""
OVERTAKEN_MS: Final = 2_500
"""How long those who know too little are alone with each other: long enough to stand for election, and to serve."""


class Scene:
    """`until` is when the ambush ends, in virtual ms: then the network is healed."""

    def __init__(self, core: Core, machines: Sequence[Place], network: Network, rng: Random) -> None:
        self.core = core
        self.machines = machines
        self.network = network
        self.rng = rng
        self.until = 0

    @property
    def over(self) -> bool:
        """Whether no more harm is to be done in this run."""
        return not self.core.faults.ambush_every

    def isolate(self, machine: Machine, but: Machine | None = None) -> None:
        """From all, or all but one."""
        if not self.over:
            others = [other.place for other in self.machines if other not in (machine, but)]
            self.network.cut([pair for other in others for pair in ((other, machine.place), (machine.place, other))])

    def kill(self, machine: Machine) -> None:
        """In the middle of its next turn."""
        if not self.over:
            machine.doom(power=False)

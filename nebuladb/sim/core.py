"""What every piece of a world shares."""

from __future__ import annotations

from random import Random

from nebuladb.sim.faults import Faults
from nebuladb.sim.invariants.floors import Floors
from nebuladb.sim.report import Report
from nebuladb.sim.scheduler import Scheduler
from nebuladb.sim.trace import Trace


class Core:
    """Time, trace, counts and the faults in force. Each piece draws from a stream of its own, so that a change in one
    doesn't reshuffle all others."""

    def __init__(self, seed: int, faults: Faults, trace: Trace) -> None:
        self.seed = seed
        self.drawn = faults
        """What the seed drew; `faults` becomes calm in the end."""
        self.faults = faults
        self.trace = trace
        self.report = Report(seeds=1)
        self.floors = Floors(clocks_jump=bool(faults.jump_every))
        self.fastest = 1.0
        """The highest rate of any clock so far."""
        self.scheduler = Scheduler(self.stream("ties"), faults.grain)

    def stream(self, name: str) -> Random:
        """Random numbers for one purpose. Seeded with a text, which Python hashes by SHA-512, not by its own hash."""
        return Random(f"{self.seed} {name}")

    def hit(self, fault: str) -> None:
        """Count a fault that bit."""
        self.report.faults[fault] += 1

    def note(self, what: str, node: str = "", detail: object = "") -> None:
        """Add to the trace."""
        self.trace.note(self.scheduler.now, what, node, detail)

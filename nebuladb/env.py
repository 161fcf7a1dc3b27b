"""What the deterministic part of the system may know of the world: two clocks, randomness and probes.

Below ``server`` nobody asks the operating system for any of these; they come in as arguments, so that the simulator
can be the world (``docs/architecture.md``).
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final, Protocol

BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The system's number of the clock that counts suspension; CLOCK_MONOTONIC's where a system has none."""


class Clock(Protocol):
    """Time in whole milliseconds since an arbitrary start."""

    def monotonic(self) -> int:
        """Milliseconds on a clock that stands still while the machine is suspended; for ticks and deadlines."""
        ...

    def boottime(self) -> int:
        """Milliseconds on a clock that counts suspension (CLOCK_BOOTTIME); for leases (S9, S27)."""
        ...


class Rng(Protocol):
    """The slice of ``random.Random`` that we use."""

    def randrange(self, start: int, stop: int) -> int:
        """A uniform integer in [start, stop)."""
        ...

    def getrandbits(self, k: int) -> int:
        """A uniform integer of `k` bits."""
        ...


class Probes:
    """Counts of rare paths that were reached; the simulator reports those that never were (house rule 9)."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        self.hits[name] += 1


probe: Final = Probes()
"""The process's probes. Counting changes no behaviour, which is why this one global is allowed."""

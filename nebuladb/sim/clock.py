"""A node's clocks, which drift."""

from __future__ import annotations

from random import Random

MAX_UPTIME_MS = 1 << 40


class DriftingClock:
    """`nebuladb.env.Clock` over virtual time: both clocks start anywhere, at each boot anew, and run at one rate."""

    def __init__(self, now: int, drift: float, rng: Random) -> None:
        self.rate = 1 + rng.uniform(-drift, drift)
        self._booted = now
        self._monotonic = rng.randrange(MAX_UPTIME_MS)
        self._boottime = rng.randrange(MAX_UPTIME_MS)
        self.now = now
        """Virtual ms; whoever asks for the time sets it first."""

    def monotonic(self) -> int:
        return self._monotonic + int((self.now - self._booted) * self.rate)

    def boottime(self) -> int:
        return self._boottime + int((self.now - self._booted) * self.rate)

    def leap(self, milliseconds: int) -> None:
        """The monotonic clock jumps ahead, or (negative) stood still so long while nobody read it. Not the other one:
        it counts suspension, and by it a lease is as long as it is (S27)."""
        self._monotonic += milliseconds

"""The machine's clocks."""

from __future__ import annotations

import time

from nebuladb.env import BOOTTIME


class SystemClock:
    """`nebuladb.env.Clock` by the operating system."""

    def monotonic(self) -> int:
        """CLOCK_MONOTONIC in ms."""
        return time.monotonic_ns() // 1_000_000

    def boottime(self) -> int:
        """CLOCK_BOOTTIME, which counts suspension, in ms; CLOCK_MONOTONIC where a system has none."""
        return time.clock_gettime_ns(BOOTTIME) // 1_000_000

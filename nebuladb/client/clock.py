"""The clock by which requests and leases end."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds, also those in which the machine slept: the servers' lease clocks ran on meanwhile (S27), and whoever
    wakes must not believe that it still holds what has ended. CLOCK_MONOTONIC where a system has no such clock."""
    return time.clock_gettime(_CLOCK)

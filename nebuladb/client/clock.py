"""The clock by which requests and leases end."""

from __future__ import annotations

import time

from nebuladb.env import BOOTTIME


def boottime() -> float:
    """Seconds, those in which the machine slept included. The servers' lease clocks ran on meanwhile (S27), so a client
    that wakes must not believe that it still holds what has ended."""
    return time.clock_gettime(BOOTTIME)

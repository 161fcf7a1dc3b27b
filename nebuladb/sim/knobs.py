"""Bounds of the product made small in some seeds, so that short runs reach what a real load reaches in hours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import ModuleType

from nebuladb.node import host, replica
from nebuladb.raft import log

CHOICES: tuple[tuple[ModuleType, str, tuple[int, ...]], ...] = (
    (host, "CUT_EVERY", (3, 30)),
    (host, "MAX_BATCH_BYTES", (200, 2_000)),
    (host, "MAX_FRAME_BYTES", (300, 3_000)),
    (host, "MAX_UNSYNCED_BYTES", (2_000,)),
    (replica, "MAX_ENTRY_COMMANDS", (1, 3)),
    (replica, "MAX_SLICE_BYTES", (1, 500)),
    (replica, "MAX_ENTRIES_IN_FLIGHT", (1, 8)),
    (log, "CONFLICT_SCAN", (1, 3)),
)
"""Where a bound stands and what else it may be; each keeps its own value in half of the seeds."""


@contextmanager
def small_bounds(rng: Random) -> Iterator[None]:
    """For the time of one world."""
    kept = [(module, name, getattr(module, name)) for module, name, _ in CHOICES]
    try:
        for module, name, values in CHOICES:
            if rng.randrange(2):
                setattr(module, name, rng.choice(values))
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)

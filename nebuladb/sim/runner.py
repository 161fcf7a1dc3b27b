"""Many seeds, on several processes."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from functools import partial
from multiprocessing import get_context

from nebuladb.sim.world import Result, Variant, World

CHUNK = 4
"""Seeds that a process takes at once."""

COLLECT_EVERY = 8
"""Worlds that may lie dead in memory, about."""


def run_seed(
    seed: int, *, nodes: int, seconds: float, variant: Variant = Variant.NONE, without: Collection[str] = ()
) -> Result:
    """One seed, from beginning to end."""
    # A world is made of cycles and dies as a whole: collecting while it lives costs a tenth of the time for nothing.
    if not gc.get_freeze_count():
        gc.freeze()  # the program itself is never garbage: it isn't looked at again
    gc.disable()
    try:
        return World(seed, nodes=nodes, seconds=seconds, variant=variant, without=without).run()
    finally:
        gc.enable()
        if seed % COLLECT_EVERY == 0:
            gc.collect()


def run_seeds(first: int, count: int, *, nodes: int, seconds: float, jobs: int) -> Iterator[Result]:
    """Results in the order in which they come."""
    run = partial(run_seed, nodes=nodes, seconds=seconds)
    seeds = range(first, first + count)
    if jobs <= 1 or count == 1:
        yield from map(run, seeds)
        return
    with get_context("spawn").Pool(min(jobs, count)) as pool:
        yield from pool.imap_unordered(run, seeds, CHUNK)

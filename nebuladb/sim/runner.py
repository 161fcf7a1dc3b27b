"""Many seeds, on several processes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from multiprocessing import get_context

from nebuladb.sim.world import Result, Variant, World

CHUNK = 4
"""Seeds that a process takes at once."""

COLLECT_EVERY = 8
"""Worlds that may lie dead in memory, about."""


def run_seed(
    seed: int,
    *,
    nodes: int,
    seconds: float,
    variant: Variant = Variant.NONE,
    without: Collection[str] = (),
    show: Callable[[str], None] | None = None,
) -> Result:
    """One seed, from beginning to end; `show` gets every event."""
    # A world is made of cycles and dies as a whole: collecting while it lives costs a tenth of the time for nothing.
    if not gc.get_freeze_count():
        gc.freeze()  # the program itself is never garbage: it isn't looked at again
    gc.disable()
    begun = time.process_time()
    try:
        result = World(seed, nodes=nodes, seconds=seconds, variant=variant, without=without, show=show).run()
    finally:
        gc.enable()
        if seed % COLLECT_EVERY == 0:
            gc.collect()
    result.report.cpu_seconds = time.process_time() - begun
    return result


def run_seeds(first: int, count: int, *, nodes: int, seconds: float, jobs: int) -> Iterator[Result]:
    """Results in the order in which they come."""
    run = partial(run_seed, nodes=nodes, seconds=seconds)
    seeds = range(first, first + count)
    if jobs <= 1 or count == 1:
        yield from map(run, seeds)
        return
    with get_context("spawn").Pool(min(jobs, count)) as pool:
        yield from pool.imap_unordered(run, seeds, CHUNK)

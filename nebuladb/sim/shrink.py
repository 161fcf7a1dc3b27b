"""From a seed that fails to the least that still does: fewer faults, fewer clients, less time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Final

from nebuladb.sim.faults import Faults
from nebuladb.sim.runner import run_seed
from nebuladb.sim.world import Result, World

MAX_ROUNDS: Final = 4
"""What could not be dropped at first may be dropped when something else is gone."""

Run = Callable[[frozenset[str], float], Result]


def names(seed: int, nodes: int, seconds: float) -> list[str]:
    """What may be left out of a seed: its faults, then its clients (of the cluster's own keyspaces)."""
    world = World(seed, nodes=nodes, seconds=seconds)
    calm, drawn = Faults(), world.core.drawn
    faults = [part.name for part in fields(Faults) if getattr(drawn, part.name) != getattr(calm, part.name)]
    return faults + [client.name for client in world.clients]


def shrink(run: Run, first: Result, droppable: Sequence[str], seconds: float, say: Callable[[str], None]) -> Result:
    """Drop halves, quarters, … single ones as long as the same oracle complains; then time. The last that failed.

    Every piece of a world draws from a stream of its own, so what is left does much the same without the rest.
    """
    found = first
    without: frozenset[str] = frozenset()
    for _ in range(MAX_ROUNDS):
        before = without
        left = [name for name in droppable if name not in without]
        size = max(len(left) // 2, 1)
        while left:
            for chunk in [left[start : start + size] for start in range(0, len(left), size)]:
                attempt = run(without | frozenset(chunk), seconds)
                if attempt.violation and attempt.oracle == first.oracle:
                    found, without = attempt, without | frozenset(chunk)
                    say(f"still fails without {', '.join(chunk)}")
            left = [name for name in left if name not in without]
            if size == 1:
                break
            size = max(size // 2, 1)
        if without == before:
            break
    while seconds > 1:
        attempt = run(without, round(seconds * 0.7, 2))
        if not attempt.violation or attempt.oracle != first.oracle:
            break
        found, seconds = attempt, round(seconds * 0.7, 2)
        say(f"still fails in {seconds:g} s")
    found.without, found.seconds = tuple(sorted(without)), seconds
    return found


def shrink_seed(seed: int, nodes: int, seconds: float, say: Callable[[str], None]) -> Result:
    """Shrink one seed; its violation is empty if it doesn't fail at all."""

    def run(without: frozenset[str], seconds: float) -> Result:
        return run_seed(seed, nodes=nodes, seconds=seconds, without=without)

    first = run(frozenset(), seconds)
    if not first.violation:
        return first
    return shrink(run, first, names(seed, nodes, seconds), seconds, say)

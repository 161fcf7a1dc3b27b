"""Who can't hear whom, for each shape of a partition. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeAlias

Pairs: TypeAlias = frozenset[tuple[int, int]]
"""(from, to): what `from` sends doesn't reach `to`."""

NOBODY: Pairs = frozenset()


class Shape(StrEnum):
    """How a network falls apart."""

    HALVES = "halves"
    """A minority and the rest can't hear each other."""
    DEAF = "deaf"
    """One-way: the minority doesn't hear the rest."""
    MUTE = "mute"
    """One-way: the rest doesn't hear the minority."""
    RING = "ring"
    """Each hears only its two neighbours; of three nodes, two hear the third only: a bridge."""
    FLAPPING = "flapping"
    """Halves that come and go."""


def blocked(shape: Shape, order: Sequence[int]) -> Pairs:
    """The pairs; `order` is of all nodes, and its beginning is the minority."""
    if shape is Shape.RING:
        return _ring(order)
    few = order[: (len(order) - 1) // 2]
    many = order[len(few) :]
    deaf = {(a, b) for a in many for b in few}
    mute = {(a, b) for a in few for b in many}
    if shape is Shape.DEAF:
        return frozenset(deaf)
    if shape is Shape.MUTE:
        return frozenset(mute)
    return frozenset(deaf | mute)


def _ring(order: Sequence[int]) -> Pairs:
    size = len(order)
    if size == 3:  # all are neighbours; the first is the bridge
        return frozenset({(order[1], order[2]), (order[2], order[1])})
    return frozenset(
        (order[a], order[b]) for a in range(size) for b in range(size) if (a - b) % size not in (0, 1, size - 1)
    )

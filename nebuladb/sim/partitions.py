"""Shapes of partitions: which (sender, receiver) are cut."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

Pairs = list[tuple[int, int]]


def _both_ways(pairs: Pairs) -> Pairs:
    return pairs + [(other, one) for one, other in pairs]


def _sides(here: Sequence[int], there: Sequence[int]) -> Pairs:
    return [(one, other) for one in here for other in there]


def halves(rng: Random, places: Sequence[int], _: int) -> Pairs:
    """Some here, the others there."""
    shuffled = rng.sample(places, len(places))
    size = rng.randrange(1, len(places))
    return _both_ways(_sides(shuffled[:size], shuffled[size:]))


def isolated(rng: Random, places: Sequence[int], leader: int) -> Pairs:
    """A leader alone, if there is one; it goes on leading until it notices."""
    return _both_ways(_sides([leader], [place for place in places if place != leader]))


def one_way(rng: Random, places: Sequence[int], _: int) -> Pairs:
    """Some reach the others, who do not reach them."""
    shuffled = rng.sample(places, len(places))
    size = rng.randrange(1, len(places))
    return _sides(shuffled[:size], shuffled[size:])


def ring(rng: Random, places: Sequence[int], _: int) -> Pairs:
    """Each reaches its neighbours only; with three nodes, where all are neighbours, a chain: one is a bridge."""
    shuffled = rng.sample(places, len(places))
    count = len(shuffled)
    far = 2 if count > 3 else 1
    pairs = [
        (shuffled[one], shuffled[other])
        for one in range(count)
        for other in range(one + 1, count)
        if min(other - one, count - other + one) >= far
    ]
    return _both_ways(pairs if count > 3 else pairs[:1])


SHAPES: Final = {"halves": halves, "isolated leader": isolated, "one way": one_way, "ring": ring}

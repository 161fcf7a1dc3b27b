"""`Scheduler` against a model: one sorted list of all that is due."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from nebuladb.sim.scheduler import MAX_STEPS_MS, WARM_UP_MS, Scheduler
from nebuladb.sim.violation import Violation


class Model:
    """What `Scheduler` promises, in as few words as there are."""

    def __init__(self, rng: Random, grain: int) -> None:
        self.now = self._count = self._until = 0
        self._rng = rng
        self._grain = grain
        self._due: list[tuple[int, float, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        self._add(delay, self._rng.random(), action, args)

    def last(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        self._add(delay, self._rng.random() + (self._grain > 1), action, args)

    def _add(self, delay: int, tie: float, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        at = -(-(self.now + delay) // self._grain) * self._grain
        self._count += 1
        insort(self._due, (at, tie, self._count, action, args))

    def run(self, until: int) -> None:
        self._until = until
        while self.now < self._until and self._due:
            self.now, _, _, action, args = self._due.pop(0)
            action(*args)

    def stop(self) -> None:
        self._until = 0


def _story(seed: int, made: type[Scheduler] | type[Model], grain: int) -> list[tuple[int, int]]:
    """(time, event) of all that happens when events bring on events, now and then at once, in several runs."""
    rng, told = Random(seed), list[tuple[int, int]]()
    scheduler = made(Random(f"{seed} ties"), grain)

    def happens(number: int) -> None:
        told.append((scheduler.now, number))
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            add = rng.choice((scheduler.after, scheduler.after, scheduler.last))
            add(rng.choice((0, 0, 1, 7, 50)), happens, rng.randrange(1_000))
        if not rng.randrange(100):
            scheduler.stop()

    for number in range(40):
        scheduler.after(rng.randrange(20), happens, number)
    for until in (5, 5, 60, 61, 300):
        scheduler.run(until)
        told.append((scheduler.now, -until))
    return told


@pytest.mark.parametrize("grain", [1, 5, 20])
def test_the_order_is_that_of_time_then_of_the_draw(grain: int) -> None:
    events = 0
    for seed in range(40):
        told = _story(seed, Scheduler, grain)
        assert told == _story(seed, Model, grain)
        events += len(told)
    assert events > 40 * 40


def test_the_first_event_at_the_end_is_the_last() -> None:
    told: list[int] = []
    scheduler = Scheduler(Random(1))
    for number in range(3):
        scheduler.after(10, told.append, number)
    scheduler.run(10)
    assert (len(told), scheduler.now) == (1, 10)
    scheduler.run(11)
    assert sorted(told) == [0, 1, 2]


def test_an_endless_loop_is_a_violation() -> None:
    scheduler = Scheduler(Random(1))

    def again() -> None:
        scheduler.after(0, again)

    again()
    with pytest.raises(Violation):
        scheduler.run(1)
    assert scheduler.steps == MAX_STEPS_MS * WARM_UP_MS

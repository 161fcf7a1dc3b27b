"""Virtual time: the heap of what is to happen."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from random import Random
from typing import Any, Final

from nebuladb.sim.violation import Violation

MAX_STEPS_MS: Final = 60
"""Steps a virtual millisecond, on average; more is an endless loop."""
WARM_UP_MS: Final = 1_000

_Item = tuple[float, int, Callable[..., None], tuple[Any, ...]]
"""Its place among those of its instant, a number that no other has, and what to call."""


class Scheduler:
    """Runs actions at their virtual times (ms); those of one millisecond in an order drawn from `rng`."""

    def __init__(self, rng: Random, grain: int = 1) -> None:
        """`grain`: nothing happens but at multiples of it, in ms. A coarse one makes turns dense: many frames and
        requests meet in each."""
        self.now = 0
        self._grain = grain
        self.steps = 0
        self._draw = rng.random
        self._instants: list[int] = []
        """A heap of the times at which anything is due."""
        self._due: dict[int, list[_Item]] = {}
        """What is due at each: that of `now` is a heap, another becomes one when its time has come."""
        self._count = 0
        self._until = 0
        self._limit = MAX_STEPS_MS * WARM_UP_MS

    def after(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Call `action(*args)` in `delay` ms, at least 0."""
        self._add(delay, self._draw(), action, args)

    def last(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Likewise; where time is coarse, after all else of its instant that is known by then, as an event loop looks
        at all of its sockets before it goes on."""
        self._add(delay, self._draw() + (self._grain > 1), action, args)

    def _add(self, delay: int, tie: float, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._count = count = self._count + 1
        item = tie, count, action, args  # no two compare equal up to here: actions have no order
        at = self.now + delay
        at += -at % self._grain
        due = self._due.get(at)
        if due is None:
            self._due[at] = [item]
            heappush(self._instants, at)
        elif at == self.now:
            heappush(due, item)
        else:
            due.append(item)

    def run(self, until: int) -> None:
        """Let things happen up to the first at or after `until`, or to `stop`, or as long as anything is due.

        Raises `Violation` if too much happens in too little time.
        """
        instants = self._instants
        self._until = until
        while self.now < self._until and instants:
            self.now = now = instants[0]
            due = self._due[now]
            heapify(due)
            while due:
                _, _, action, args = heappop(due)
                self.steps += 1
                action(*args)
                if self.steps >= self._limit:
                    self._check()
                if now >= self._until:
                    return
            heappop(instants)
            del self._due[now]

    def stop(self) -> None:
        """Let nothing more happen in this `run`."""
        self._until = 0

    def _check(self) -> None:
        self._limit = MAX_STEPS_MS * (self.now + WARM_UP_MS)
        if self.steps >= self._limit:
            raise Violation(f"{self.steps} steps in {self.now} ms: something goes round in circles")

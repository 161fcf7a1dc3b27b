"""The event loop of a simulated process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from nebuladb.errors import InvariantViolation
from nebuladb.sim.core import Core
from nebuladb.sim.faults import Faults
from nebuladb.sim.loop import WAKE_MS, Loop
from nebuladb.sim.trace import Trace

THREAD_MS = 70


class World:
    def __init__(self) -> None:
        self.core = Core(1, Faults(), Trace())
        self.still = False
        self.late: list[Callable[[], None]] = []
        self.loop = Loop(self.core, Random(1), self.runs, lambda: THREAD_MS)

    def runs(self, action: Callable[[], None]) -> None:
        if self.still:
            self.late.append(action)
        else:
            action()

    def passes(self, milliseconds: int) -> None:
        self.core.scheduler.after(milliseconds, self.core.scheduler.stop)
        self.core.scheduler.run(1 << 60)


def test_what_is_called_soon_comes_in_its_order_and_what_it_calls_a_round_later() -> None:
    world, seen = World(), list[str]()

    def calls(name: str) -> None:
        seen.append(name)
        world.loop.call_soon(seen.append, name.upper())

    for name in "abc":
        world.loop.call_soon(calls, name)
    cancelled = world.loop.call_soon(seen.append, "never")
    cancelled.cancel()
    world.passes(1)
    assert "".join(seen) == "abcABC"


def test_a_task_awaits_futures_and_threads_for_as_long_as_they_take() -> None:
    world, seen = World(), list[object]()

    async def work(future: asyncio.Future[str]) -> None:
        seen.append(await future)
        seen.append(await asyncio.to_thread(lambda: asyncio._get_running_loop()))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        seen.append(world.core.scheduler.now)

    future = world.loop.create_future()
    task = world.loop.create_task(work(future), name="work")
    world.passes(10)
    assert seen == []
    world.loop.call_soon_threadsafe(future.set_result, "came")
    world.passes(WAKE_MS + 1)
    assert seen == ["came"]
    world.passes(3 * THREAD_MS)
    assert seen[1] is None  # a thread has no loop
    assert task.done()
    assert seen[2] >= 10 + 2 * THREAD_MS  # type: ignore[operator]
    assert asyncio._get_running_loop() is None


def test_nothing_comes_while_the_process_stands_still_or_is_dead() -> None:
    world, seen = World(), list[str]()
    world.loop.call_soon(seen.append, "late")
    world.still = True
    world.passes(5)
    assert seen == []
    world.still = False
    for action in world.late:
        action()
    assert seen == ["late"]

    async def work() -> None:
        try:
            await world.loop.create_future()
        finally:
            seen.append("closed")

    world.loop.waits("me", lambda: seen.append("broken"))
    world.loop.waits("not me", lambda: seen.append("never"))
    world.loop.waits("not me", None)
    world.loop.create_task(work())
    world.passes(1)
    world.loop.create_task(work())  # not begun yet
    world.loop.call_soon(seen.append, "never")
    world.loop.close()
    world.loop.call_soon(seen.append, "never")
    world.passes(5)
    assert seen == ["late", "closed", "broken"]


def test_what_a_callback_raises_ends_the_run() -> None:
    world = World()

    def breaks() -> None:
        raise InvariantViolation("so it is")

    async def breaks_too() -> None:
        breaks()

    world.loop.call_soon(breaks)
    with pytest.raises(InvariantViolation):
        world.passes(1)
    world.loop.create_task(breaks_too())
    with pytest.raises(InvariantViolation):
        world.passes(1)

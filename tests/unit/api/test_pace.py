"""Long reads at once: stretches share the loop, and nobody who goes away takes the others' turn along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from nebuladb.api import pace
from nebuladb.api.pace import Pace
from nebuladb.node.pump import REST
from tests.unit.api.turns import Turns


async def test_stretches_of_many_reads_do_not_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    reads, turns = [], Turns()
    shared = Pace()

    async def read() -> None:
        for _ in range(3):
            async with shared:
                reads.append(turns.now)

    async with asyncio.timeout(10):
        await asyncio.gather(*(read() for _ in range(10)))
    assert len(reads) == len(set(reads)) == 30


async def test_a_read_that_is_cancelled_in_its_turn_leaves_it_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    shared = Pace()
    done = 0

    async def read() -> None:
        nonlocal done
        async with shared:
            done += 1

    reads = [asyncio.create_task(read()) for _ in range(20)]
    async with asyncio.timeout(10):
        for doomed in reads[::2]:
            await asyncio.sleep(0)
            doomed.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
    async with asyncio.timeout(10):
        await read()
    assert done >= 11


class Clock:
    """Seconds as a pace counts them, and the rests that it asks for, which end when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.rests: list[float] = []
        self._ends: list[Callable[[], object]] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._later)

    def _later(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        self.rests.append(seconds)
        self._ends.append(lambda: call(*arguments))

    def end_rest(self) -> None:
        self._ends.pop()()


async def test_a_stretch_that_took_long_is_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncounted, long reads had the loop for as long as there were any, but for a breath between two stretches."""
    clock, shared = Clock(monkeypatch), Pace()
    async with shared:
        clock.now += 1.0
    next_one = asyncio.create_task(shared.__aenter__())
    for _ in range(10):
        await asyncio.sleep(0)
    assert clock.rests == [1.0 * REST]
    assert not next_one.done()
    clock.end_rest()
    async with asyncio.timeout(10):
        await next_one


async def test_a_long_stretch_behind_a_short_one_is_rested_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was forgiven: the short one's end had asked for a breath, and that was all."""
    clock, shared = Clock(monkeypatch), Pace()
    for seconds in (0.001, 1.0):
        async with shared:
            clock.now += seconds
    await asyncio.sleep(0)
    assert clock.rests == [pytest.approx(1.001 * REST)]


async def test_so_is_one_that_ends_while_another_is_rested_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shared = Clock(monkeypatch), Pace()
    fetched = asyncio.get_running_loop().create_future()

    async def read() -> None:
        async with shared:
            await fetched
            clock.now += 4.0

    begun = asyncio.create_task(read())
    await asyncio.sleep(0)
    async with shared:
        clock.now += 1.0
    await asyncio.sleep(0)
    assert clock.rests == [1.0 * REST]
    fetched.set_result(None)
    await begun
    clock.end_rest()
    assert len(clock.rests) == 2
    assert 4.0 * REST <= clock.rests[1] <= 5.0 * REST
    clock.end_rest()
    assert len(clock.rests) == 2
    async with asyncio.timeout(10), shared:
        pass


async def test_who_comes_while_others_wait_waits_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shared = Clock(monkeypatch), Pace()
    order: list[str] = []

    async def read(name: str) -> None:
        async with shared:
            order.append(name)

    async with shared:
        clock.now += 1.0
    waiting = [asyncio.create_task(read(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    clock.end_rest()
    async with asyncio.timeout(10):
        await asyncio.gather(read("late"), *waiting)
    assert order == ["first", "second", "late"]


async def test_a_turn_that_came_just_before_the_cancel_is_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    shared = Pace()

    async def read() -> None:
        async with shared:
            pass

    doomed, other = asyncio.create_task(read()), asyncio.create_task(read())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(doomed.cancel)  # right behind what makes it its turn
    async with asyncio.timeout(10):
        await other
    assert doomed.cancelled()

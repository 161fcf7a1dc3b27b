"""A coroutine under a carrier sees what it would see in a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nebuladb.rpc.serving.carrier import WAITS, Carriers

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


class Work:
    """Remembers how its coroutine ended."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def finish(self, value: Any) -> None:
        self.ended.set_result(value)

    def fail(self, error: BaseException) -> None:
        self.ended.set_exception(error)


class Rig:
    """Carriers whose steps run in callbacks, as a transport's do."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.carriers = Carriers(self.loop)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Work:
        work = Work()
        self.loop.call_soon(self.carriers.run, coroutine, work)
        return work

    async def turn(self, *functions: Callable[[], Any]) -> None:
        """Call each in one callback, and come back when it is over."""
        done = self.loop.create_future()

        def call() -> None:
            for function in functions:
                function()
            done.set_result(None)

        self.loop.call_soon(call)
        await done


@pytest.fixture
async def rig() -> Rig:
    return Rig()


def task() -> asyncio.Task[Any]:
    found = asyncio.current_task()
    assert found is not None
    return found


async def test_what_does_not_wait_shares_a_carrier(rig: Rig) -> None:
    async def handler() -> asyncio.Task[Any]:
        return task()

    first, second = rig.begin(handler()), rig.begin(handler())
    assert await first.ended is await second.ended
    assert first.task is None
    rig.carriers.close()


async def test_what_waits_stays_in_the_task_it_began_in(rig: Rig) -> None:
    async def handler() -> tuple[asyncio.Task[Any], ...]:
        before = task()
        await asyncio.sleep(0)
        middle = task()
        await asyncio.sleep(0.001)
        return before, middle, task()

    work, other = rig.begin(handler()), rig.begin(handler())
    assert set(await work.ended) == {work.task}
    assert set(await other.ended) == {other.task}
    assert work.task is not other.task


@pytest.mark.parametrize("warm", [False, True], ids=["new carrier", "used carrier"])
async def test_timeouts_hold_from_the_first_step_on(rig: Rig, warm: bool) -> None:
    async def nothing() -> None:
        pass

    async def handler() -> str:
        try:
            async with asyncio.timeout(0.001):
                await rig.loop.create_future()
        except TimeoutError:
            assert not task().cancelling()
            return await asyncio.wait_for(asyncio.sleep(0, "went on"), 1)
        return "no timeout"

    if warm:
        await rig.begin(nothing()).ended
        await asyncio.sleep(0)
    assert await rig.begin(handler()).ended == "went on"


async def test_a_task_group_may_be_entered_in_the_first_step(rig: Rig) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def handler() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await rig.loop.create_future()
        except* LookupError:
            pass
        return "cancelled by its child"

    assert await rig.begin(handler()).ended == "cancelled by its child"


@pytest.mark.parametrize("warm", [False, True], ids=["new carrier", "used carrier"])
async def test_cancelled_in_the_turn_in_which_it_began(rig: Rig, warm: bool) -> None:
    """Before the carrier's own first step, when a plain task would never have heard of its coroutine's end."""
    seen: list[str] = []

    async def nothing() -> None:
        pass

    async def handler() -> str:
        try:
            await rig.loop.create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return ""

    if warm:
        await rig.begin(nothing()).ended
        await asyncio.sleep(0)
    work = Work()

    def cancel() -> None:
        assert work.task is not None
        work.task.cancel()

    await rig.turn(lambda: rig.carriers.run(handler(), work), cancel)
    with pytest.raises(asyncio.CancelledError):
        await work.ended
    assert seen == ["cancelled"]


async def test_a_cancellation_may_be_caught_and_the_call_go_on(rig: Rig) -> None:
    async def handler() -> str:
        try:
            await rig.loop.create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            return "went on"
        return ""

    work = rig.begin(handler())
    await rig.turn()
    assert work.task is not None
    work.task.cancel()
    assert await work.ended == "went on"


async def test_one_that_cancels_itself_in_its_first_step(rig: Rig) -> None:
    inner = rig.loop.create_future()

    async def waits() -> None:
        task().cancel()
        await inner

    async def returns() -> str:
        task().cancel()
        return "done"

    async def innocent() -> str:
        await asyncio.sleep(0)
        return "not cancelled"

    with pytest.raises(asyncio.CancelledError):
        await rig.begin(waits()).ended
    assert inner.cancelled()  # as a task does with what it waits for
    assert await rig.begin(returns()).ended == "done"
    assert await rig.begin(innocent()).ended == "not cancelled"


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError()], ids=["error", "cancelled"])
async def test_errors_arrive(rig: Rig, error: BaseException) -> None:
    async def at_once() -> None:
        raise error

    async def later() -> None:
        await asyncio.sleep(0)
        raise error

    async def by_a_future() -> None:
        future = rig.loop.create_future()
        rig.loop.call_soon(future.set_exception, LookupError("from outside"))
        try:
            await future
        except LookupError:
            raise error from None

    for handler in (at_once, later, by_a_future):
        with pytest.raises(type(error)):
            await rig.begin(handler()).ended


async def test_context_variables_do_not_leak(rig: Rig) -> None:
    async def sets(wait: bool) -> str:
        VARIABLE.set("mine")
        if wait:
            await asyncio.sleep(0)
        return VARIABLE.get()

    async def reads() -> str:
        return VARIABLE.get()

    for wait in (False, True):
        assert await rig.begin(sets(wait)).ended == "mine"
        assert await rig.begin(reads()).ended == "none"
    assert VARIABLE.get() == "none"


async def test_a_variable_that_was_set_back_costs_no_carrier(rig: Rig) -> None:
    async def handler() -> asyncio.Task[Any]:
        token = VARIABLE.set("mine")
        VARIABLE.reset(token)
        return task()

    assert await rig.begin(handler()).ended is await rig.begin(handler()).ended


async def test_the_result_of_a_step(rig: Rig) -> None:
    results: list[Any] = []

    async def value(*, wait: bool) -> int:
        if wait:
            await asyncio.sleep(0)
        return 7

    work = Work()
    await rig.turn(
        lambda: results.append(rig.carriers.step(value(wait=False), Work())),
        lambda: results.append(rig.carriers.step(value(wait=True), work)),
    )
    assert results == [7, WAITS]
    assert await work.ended == 7


async def test_a_carrier_that_never_got_work_ends_quietly(rig: Rig) -> None:
    async def value() -> asyncio.Task[Any]:
        return task()

    carrier = await rig.begin(value()).ended
    rig.carriers.close()
    await asyncio.wait([carrier])
    assert carrier.cancelled()

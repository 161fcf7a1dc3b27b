"""A coroutine under a carrier sees what it would see in a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from nebuladb.futures import PromptFuture
from nebuladb.rpc.serving import carrier
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
    assert carrier.exception() is None


class Prompt:
    """A handler that waits for a prompt future, and what is seen of it."""

    def __init__(self, rig: Rig) -> None:
        self.future: PromptFuture[str] = PromptFuture(loop=rig.loop)
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[BaseException] = []

    async def handler(self) -> str:
        self.tasks.append(task())
        try:
            result = await self.future
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            self.tasks.append(task())
        return result


async def test_who_sets_a_prompt_future_runs_what_waits_for_it(rig: Rig) -> None:
    one, other = Prompt(rig), Prompt(rig)
    first, second = Work(), Work()
    done: list[bool] = []
    await rig.turn(lambda: rig.carriers.run(one.handler(), first))
    await rig.turn(lambda: one.future.set_result("now"), lambda: done.append(first.ended.done()))
    assert done == [True]
    assert first.ended.result() == "now"
    assert first.task is None, "the carrier is another's by now"
    await rig.turn(lambda: rig.carriers.run(other.handler(), second))
    await rig.turn(lambda: other.future.set_exception(LookupError()), lambda: done.append(second.ended.done()))
    assert done == [True, True]
    assert isinstance(second.ended.exception(), LookupError)
    assert len({*one.tasks, *other.tasks}) == 1, "both ran in one carrier, which never ran itself"


async def test_a_prompt_future_that_a_task_sets_is_heard_of_a_turn_later(rig: Rig) -> None:
    prompt, work = Prompt(rig), Work()
    await rig.turn(lambda: rig.carriers.run(prompt.handler(), work))
    prompt.future.set_result("later")
    assert not work.ended.done()
    assert await work.ended == "later"
    assert len(set(prompt.tasks)) == 1


@pytest.mark.parametrize("set_too", [False, True])
@pytest.mark.parametrize("warm", [False, True], ids=["new carrier", "used carrier"])
async def test_one_that_waits_for_a_prompt_future_may_be_cancelled(rig: Rig, warm: bool, set_too: bool) -> None:
    if warm:
        await rig.begin(asyncio.sleep(0)).ended
        await rig.begin(_nothing()).ended
        await asyncio.sleep(0)
    prompt, work = Prompt(rig), Work()

    def cancel() -> None:
        assert work.task is not None
        work.task.cancel()
        if set_too:
            prompt.future.set_result("too late")

    await rig.turn(lambda: rig.carriers.run(prompt.handler(), work), cancel)
    with pytest.raises(asyncio.CancelledError):
        await work.ended
    assert [type(error) for error in prompt.errors] == [asyncio.CancelledError]
    assert len(set(prompt.tasks)) == 1
    assert prompt.future.cancelled() is not set_too


async def test_timeouts_hold_around_a_prompt_future(rig: Rig) -> None:
    never: PromptFuture[None] = PromptFuture(loop=rig.loop)

    async def handler() -> str:
        try:
            async with asyncio.timeout(0.001):
                await never
        except TimeoutError:
            return "late"
        return ""

    assert await rig.begin(handler()).ended == "late"
    assert never.cancelled()


async def test_prompt_and_other_waits_may_follow_each_other(rig: Rig) -> None:
    prompts: list[PromptFuture[int]] = [PromptFuture(loop=rig.loop) for _ in range(4)]

    async def handler() -> list[Any]:
        seen: list[Any] = [task(), await prompts[0], await prompts[1], task()]
        await asyncio.sleep(0)
        return [*seen, await prompts[2], await asyncio.wait_for(prompts[3], 1), task()]

    work = rig.begin(handler())
    for number, future in enumerate(prompts):
        await rig.turn(lambda future=future, number=number: future.set_result(number))  # type: ignore[misc]
    seen = await work.ended
    assert [one for one in seen if isinstance(one, int)] == [0, 1, 2, 3]
    assert len({one for one in seen if not isinstance(one, int)}) == 1


async def test_two_may_wait_for_one_prompt_future(rig: Rig) -> None:
    prompt, works = Prompt(rig), [Work(), Work()]
    for work in works:
        await rig.turn(lambda work=work: rig.carriers.run(prompt.handler(), work))  # type: ignore[misc]
    await rig.turn(lambda: prompt.future.set_result("both"))
    assert [await work.ended for work in works] == ["both", "both"]


@pytest.mark.parametrize("warm", [False, True], ids=["new carriers", "used carriers"])
async def test_two_of_one_turn_may_wait_for_one_future(rig: Rig, warm: bool) -> None:
    if warm:
        await asyncio.gather(*(rig.begin(asyncio.sleep(0)).ended for _ in range(3)))
    future: asyncio.Future[str] = rig.loop.create_future()

    async def handler() -> str:
        return await future

    works = [Work() for _ in range(3)]
    await rig.turn(*(lambda work=work: rig.carriers.run(handler(), work) for work in works))
    other = asyncio.ensure_future(handler())
    await asyncio.sleep(0)
    future.set_result("all")
    assert [await work.ended for work in works] == ["all"] * 3
    assert await other == "all"


async def test_what_nobody_can_wait_for_fails_as_in_a_task(rig: Rig) -> None:
    @types.coroutine
    def odd() -> Generator[Any, Any, None]:
        yield 7

    async def handler() -> None:
        await odd()

    with pytest.raises(RuntimeError, match="bad yield: 7"):
        await rig.loop.create_task(handler())
    with pytest.raises(RuntimeError, match="bad yield: 7"):
        await rig.begin(handler()).ended


async def test_a_call_that_can_not_be_ended_costs_whoever_set_its_future_nothing(rig: Rig) -> None:
    class Broken(Work):
        def finish(self, value: Any) -> None:
            raise LookupError

    prompt = Prompt(rig)
    await rig.turn(lambda: rig.carriers.run(prompt.handler(), Broken()))
    await rig.turn(lambda: prompt.future.set_result("x"))
    assert await rig.begin(_nothing()).ended is None


async def test_free_carriers_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "MAX_FREE", 2)
    prompts = [Prompt(rig) for _ in range(5)]
    works = [rig.begin(prompt.handler()) for prompt in prompts]
    await rig.turn()
    for prompt in prompts:
        await rig.turn(lambda prompt=prompt: prompt.future.set_result("x"))  # type: ignore[misc]
    await asyncio.gather(*(work.ended for work in works))
    await asyncio.sleep(0.001)
    assert sum(not prompt.tasks[0].done() for prompt in prompts) == 2
    rig.carriers.close()
    await asyncio.wait([prompt.tasks[0] for prompt in prompts])


@pytest.mark.parametrize("wait", [False, True])
async def test_a_step_may_close_them(rig: Rig, wait: bool) -> None:
    async def closes() -> str:
        rig.carriers.close()
        if wait:
            await asyncio.sleep(0)
        return "closed"

    await rig.begin(_nothing()).ended
    if wait:
        with pytest.raises(asyncio.CancelledError):
            await rig.begin(closes()).ended
    else:
        assert await rig.begin(closes()).ended == "closed"
    assert await rig.begin(_nothing()).ended is None


async def _nothing() -> None: ...

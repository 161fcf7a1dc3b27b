"""Coroutines that finish without waiting cost no task; those that wait get one, the one they began in.

``asyncio.timeout``, ``TaskGroup`` and others ask for the current task and keep it, so a coroutine's first step can't
run outside of one, and must not run in another one than the rest. So a *carrier*, a real task that has nothing to do,
is entered for the first step, by the functions that asyncio documents for task implementations ("Extending"). If the
coroutine ends there, the carrier is free for the next one. If it waits, it is given to the carrier, which
goes on with it from where it stands; another carrier is made when one is needed.

A carrier goes to waste when the step left a mark on it: it changed a context variable, or cancelled itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Protocol


class Work(Protocol):
    """Whose coroutine it is."""

    task: asyncio.Task[None] | None
    """Set when the coroutine waits: what carries it, and cancels it."""

    def finish(self, value: Any) -> None:
        """The coroutine returned `value`."""

    def fail(self, error: BaseException) -> None:
        """It raised `error`."""


class _Seat:
    """A carrier, and what it is given."""

    __slots__ = ("context", "coroutine", "first", "free", "pristine", "run", "task", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        self.first: Any = None
        """The future that `coroutine` yielded at the end of its first step."""
        self.work: Work | None = None
        self.free: asyncio.Future[None] | None = None
        """What the carrier waits for while it has nothing to do."""
        self.context: Final = contextvars.copy_context()
        self.pristine: Final = self.context.copy()
        self.run: Final[Callable[..., Any]] = self.context.run
        carrier = _carrier(self, loop)
        # To its first yield by hand: a task that is cancelled before its first step throws into the coroutine's very
        # beginning, where no `except` of it stands yet, and what it was given would never hear of it.
        carrier.send(None)
        self.task: Final[asyncio.Task[None]] = loop.create_task(carrier, context=self.context)


async def _carrier(seat: _Seat, loop: asyncio.AbstractEventLoop) -> None:
    cancelled = await _given(seat, loop)
    coroutine, work = seat.coroutine, seat.work
    if coroutine is None or work is None:
        if cancelled is not None:
            raise cancelled
        return
    seat.coroutine = seat.work = None
    try:
        value = await _rest(coroutine, seat.first, cancelled)
    except BaseException as error:
        work.fail(error)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise
    else:
        work.finish(value)


@types.coroutine
def _given(seat: _Seat, loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, asyncio.CancelledError | None]:
    """Wait until there is something to do. Returns the cancellation that came first, if one did."""
    try:
        yield
        if seat.coroutine is None:
            seat.free = loop.create_future()
            yield from seat.free
    except asyncio.CancelledError as error:
        return error
    return None


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, Any], first: Any, cancelled: BaseException | None) -> Generator[Any, Any, Any]:
    """The rest of a coroutine that waits for `first`: ``await coroutine`` would complain that it has begun."""
    if cancelled is not None and first is not None and first.cancel():
        cancelled = None  # as a task does it: what it waits for is cancelled, and tells it
    while True:
        try:
            if cancelled is not None:
                first = coroutine.throw(cancelled)
                cancelled = None
            yield first
        except StopIteration as stop:
            return stop.value
        except BaseException as error:
            if cancelled is not None:
                raise  # out of the coroutine itself
            cancelled = error
        else:
            return (yield from coroutine)


class Carriers:
    """Runs coroutines in a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seat: _Seat | None = None
        """The free one. Never more than one: it is given away only when a coroutine waits."""

    def step(self, coroutine: Coroutine[Any, Any, Any], work: Work) -> Any:
        """Run `coroutine` to its end, or to its first wait.

        Returns what it returned, or `WAITS`: a carrier has it then, and `work` hears of its end. Raises what it raised.
        Must not be called in a task; its callers are callbacks of transports and timers.
        """
        seat = self._seat
        if seat is None:
            seat = self._seat = _Seat(self._loop)
        task = seat.task
        _enter(self._loop, task)
        try:
            first = seat.run(coroutine.send, None)
        except StopIteration as stop:
            _leave(self._loop, task)
            if seat.context != seat.pristine or task.cancelling():
                self.close()
            return stop.value
        except BaseException:
            _leave(self._loop, task)
            self.close()
            raise
        _leave(self._loop, task)
        self._seat = None
        work.task = task
        seat.coroutine, seat.first, seat.work = coroutine, first, work
        if seat.free is not None and not seat.free.done():
            seat.free.set_result(None)
        return WAITS

    def run(self, coroutine: Coroutine[Any, Any, Any], work: Work) -> None:
        """`step`, whose end `work` hears of now or later."""
        try:
            value = self.step(coroutine, work)
        except BaseException as error:
            work.fail(error)
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
        else:
            if value is not WAITS:
                work.finish(value)

    def close(self) -> None:
        """Let the free carrier go. The next step makes another one."""
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.task.cancel()


WAITS: Final = object()
"""What `Carriers.step` returns of a coroutine that waits."""
_enter: Final = asyncio.tasks._enter_task
_leave: Final = asyncio.tasks._leave_task

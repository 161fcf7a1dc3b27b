"""Coroutines that finish without waiting cost no task; those that wait get one, the one they began in.

``asyncio.timeout``, ``TaskGroup`` and others ask for the current task and keep it, so a coroutine's first step can't
run outside of one, and must not run in another one than the rest. So a *carrier*, a real task that has nothing to do,
is entered for the first step, by the functions that asyncio documents for task implementations ("Extending"). If the
coroutine ends there, the carrier is free for the next one. If it waits for a `PromptFuture`, the carrier is entered
again by whoever sets that, and the task never runs. If it waits for anything else, it is given to the carrier, which
goes on with it from where it stands; another carrier is made when one is needed.

A carrier goes to waste when a step left a mark on it: it changed a context variable, or cancelled itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Protocol

from nebuladb.futures import PromptFuture

LOG: Final = logging.getLogger("nebuladb.rpc")


MAX_FREE: Final = 256
"""Carriers that are kept for the next coroutines. As many wait at once where there are many clients; one is 2 KiB."""


class Work(Protocol):
    """Whose coroutine it is."""

    task: asyncio.Task[None] | None
    """Set while the coroutine waits: what carries it, and cancels it."""

    def finish(self, value: Any) -> None:
        """The coroutine returned `value`."""

    def fail(self, error: BaseException) -> None:
        """It raised `error`."""


class _Seat:
    """A carrier, and what it is given."""

    __slots__ = ("carriers", "context", "coroutine", "first", "free", "given", "pristine", "run", "task", "work")

    def __init__(self, carriers: Carriers, loop: asyncio.AbstractEventLoop) -> None:
        self.carriers = carriers
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        """One that waits."""
        self.first: Any = None
        """The future that it yielded."""
        self.work: Work | None = None
        self.given = False
        """The carrier is to go on with it."""
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

    def wait(self, first: Any) -> None:
        """Its coroutine waits for `first`."""
        self.first = first
        if type(first) is PromptFuture and first.resume is None:
            first.resume = self.resume
            first._asyncio_future_blocking = False  # seen, as tasks say it; another may wait for it
            return
        if getattr(first, "_asyncio_future_blocking", False):
            first._asyncio_future_blocking = False  # the same of any other
        self.given = True
        if self.free is not None and not self.free.done():
            self.free.set_result(None)

    def resume(self) -> None:
        """What its coroutine waits for is done: run the next step. Raises nothing, whatever comes of it."""
        coroutine, work, task = self.coroutine, self.work, self.task
        if coroutine is None or work is None or task.cancelling():
            return  # it was cancelled before: the carrier has it, or wakes to that and takes it
        loop = self.carriers.loop
        try:
            _enter(loop, task)
        except RuntimeError:
            loop.call_soon(self.resume)  # whoever set the future is a task, which goes on first
            return
        try:
            first = self.run(coroutine.send, None)
        except BaseException as error:
            _leave(loop, task)
            self.coroutine = self.work = self.first = work.task = None
            try:
                if isinstance(error, StopIteration):
                    self.carriers.put_back(self)
                    work.finish(error.value)
                else:
                    task.cancel()
                    work.fail(error)
            except Exception:
                LOG.exception("a call could not be ended")
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
        else:
            _leave(loop, task)
            self.wait(first)


async def _carrier(seat: _Seat, loop: asyncio.AbstractEventLoop) -> None:
    cancelled = await _given(seat, loop)
    coroutine, work, first = seat.coroutine, seat.work, seat.first
    # A future leads to the seat that it resumes: kept here, both would be left to the collector, and all they lead to.
    seat.coroutine = seat.work = seat.first = None
    if coroutine is None or work is None:
        return
    if getattr(first, "_asyncio_future_blocking", None) is not None:
        first._asyncio_future_blocking = True  # it is the task that waits for it now
    try:
        value = await _rest(coroutine, first, cancelled)
    except BaseException as error:
        work.fail(error)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise
    else:
        work.finish(value)
    finally:
        cancelled = None  # its traceback leads to this frame


@types.coroutine
def _given(seat: _Seat, loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, asyncio.CancelledError | None]:
    """Wait until there is something to do. Returns the cancellation that came first, if one did."""
    try:
        yield
        if not seat.given:
            seat.free = loop.create_future()
            yield from seat.free
    except asyncio.CancelledError as error:
        return error.with_traceback(None)
    return None


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, Any], first: Any, cancelled: BaseException | None) -> Generator[Any, Any, Any]:
    """The rest of a coroutine that waits for `first`: ``await coroutine`` would complain that it has begun."""
    if cancelled is not None and first is not None and first.cancel():
        cancelled = None  # as a task does it: what it waits for is cancelled, and tells it
    try:
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
    finally:
        cancelled = None  # its traceback leads to this frame


class Carriers:
    """Runs coroutines in a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._free: list[_Seat] = []

    def step(self, coroutine: Coroutine[Any, Any, Any], work: Work) -> Any:
        """Run `coroutine` to its end, or to its first wait.

        Returns what it returned, or `WAITS`: a carrier has it then, and `work` hears of its end. Raises what it raised.
        Must not be called in a task; its callers are callbacks of transports and timers.
        """
        # It stays where it is while nothing says that its coroutine waits: most don't.
        if not self._free:
            self._free.append(_Seat(self, self.loop))
        seat = self._free[-1]
        task = seat.task
        _enter(self.loop, task)
        try:
            first = seat.run(coroutine.send, None)
        except StopIteration as stop:
            _leave(self.loop, task)
            if seat.context != seat.pristine or task.cancelling():
                self._discard(task)
            return stop.value
        except BaseException:
            _leave(self.loop, task)
            self._discard(task)
            raise
        _leave(self.loop, task)
        if self._free:  # else the step has closed all this
            self._free.pop()
        work.task = task
        seat.coroutine, seat.work = coroutine, work
        seat.wait(first)
        return WAITS

    def _discard(self, task: asyncio.Task[None]) -> None:
        """The carrier that made a step goes to waste."""
        if self._free:  # else the step has closed all this
            self._free.pop()
        task.cancel()

    def put_back(self, seat: _Seat) -> None:
        """Its coroutine is over, and the carrier free, if it can be used again."""
        free = seat.free
        marked = seat.context != seat.pristine or seat.task.cancelling() or (free is not None and free.done())
        if marked or len(self._free) >= MAX_FREE:
            seat.task.cancel()
        else:
            self._free.append(seat)

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
        """Let the free carriers go. The next step makes another one."""
        seats, self._free = self._free, []
        for seat in seats:
            seat.task.cancel()


WAITS: Final = object()
"""What `Carriers.step` returns of a coroutine that waits."""
_enter: Final = asyncio.tasks._enter_task
_leave: Final = asyncio.tasks._leave_task

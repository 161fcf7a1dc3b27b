"""An event loop on virtual time, for what of the daemon awaits something."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, TypeVar, cast

from nebuladb.sim.core import Core

WAKE_MS: Final = 50
"""The longest until what a thread hands over is seen: the loop has other work."""

T = TypeVar("T")


class Loop:
    """Of one process. What is called soon comes in its order, a round at a time, as in asyncio's; nothing comes while
    the process stands still, or after its death. A thread's work takes as long as `takes` says, and is done at the
    beginning of that time or at its end."""

    def __init__(
        self, core: Core, rng: Random, runs: Callable[[Callable[[], None]], None], takes: Callable[[], int]
    ) -> None:
        """`runs` calls what it is given, at once or when the process doesn't stand still any more."""
        self._core = core
        self._rng = rng
        self._takes = takes
        self._runs = runs
        self._ready: deque[asyncio.Handle] = deque()
        self._due = False
        self._over = False
        self._broken: dict[object, Callable[[], None]] = {}
        self._tasks: dict[asyncio.Task[Any], Coroutine[Any, Any, Any]] = {}
        self._self = cast("asyncio.AbstractEventLoop", self)
        """Of which it has what the product asks for."""

    def __enter__(self) -> None:
        """It is the running one, for who asks for that."""
        self._outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self._self)

    def __exit__(self, *_: object) -> None:
        asyncio._set_running_loop(self._outer)

    def waits(self, who: object, broken: Callable[[], None] | None) -> None:
        """`who` waits for something here, and is told of the process' death; None: not any more."""
        if broken is None:
            self._broken.pop(who, None)
        else:
            self._broken[who] = broken

    def close(self) -> None:
        """The process is dead."""
        self._over = True
        self._ready.clear()
        for work in self._tasks.values():
            work.close()
        waiting, self._broken = list(self._broken.values()), {}
        for broken in waiting:
            self._core.scheduler.after(1, broken)

    # --- what the product asks of it

    def _soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.call_soon(callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._self)

    def create_task(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self._self, name=name)
        self._tasks[task] = coro
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._self, context)
        self._ready.append(handle)
        if not self._due:
            self._due = True
            self._core.scheduler.after(0, self._runs, self._round)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._self, context)
        self._core.scheduler.after(self._rng.randrange(WAKE_MS), self._soon, handle._run)
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """The loop's own threads, as ``asyncio.to_thread`` has them."""
        future: asyncio.Future[T] = self.create_future()
        time = self._takes()
        before, after = (0, time) if self._rng.randrange(2) else (time, 0)
        self._core.scheduler.after(before, self._work, future, after, func, args)
        return future

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What a callback raised is the product's error. That a dead process' tasks go is none."""
        if "handle" in context:
            raise context["exception"]

    # --- time

    def _round(self) -> None:
        if self._over:
            return
        self._due = False
        with self:
            for _ in range(len(self._ready)):
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()

    def _work(self, future: asyncio.Future[T], after: int, func: Callable[..., T], args: tuple[Any, ...]) -> None:
        if self._over:
            return
        try:
            result = func(*args)
        except Exception as error:
            self._core.scheduler.after(after, self._soon, future.set_exception, error)
        else:
            self._core.scheduler.after(after, self._soon, future.set_result, result)

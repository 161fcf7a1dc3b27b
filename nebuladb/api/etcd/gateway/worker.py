"""The thread in which the gateway reads and writes large messages as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

LARGE_BYTES: Final = 64 << 10
"""What is smaller is done on the loop: it takes a millisecond, or some twenty if a client is out for it. 31 MB of small
keys take two seconds."""

T = TypeVar("T")


class Worker:
    """Of one gateway. One thing at a time, however many clients ask: two would take the interpreter from the loop for
    two thirds of the time instead of half of it, and threads of a common pool from those who need them. Who waits is
    in nobody's queue: who is gone takes along what it wanted to have done."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "gateway")  # the thread begins with the first task
        self._free = asyncio.Semaphore(1)

    async def run(self, size: int, work: Callable[..., T], *args: Any) -> T:
        """Do `work`, on so many bytes or characters: at once, or in the thread if they are many. Raises what it raises.

        Who is cancelled doesn't wait: work that has begun goes on to its end, for nobody, and others wait for that.
        """
        if size <= LARGE_BYTES:
            return work(*args)
        await self._free.acquire()
        try:
            future = self._pool.submit(work, *args)
        except BaseException:
            self._free.release()
            raise
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._free.release)

        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """No more work; what has begun isn't waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

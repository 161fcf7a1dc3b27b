"""What a caller reads one by one: the events of a watch, the rows of a scan, the parts of a backup."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from nebuladb.client.errors import OTHER_LOOP
from nebuladb.errors import ClientClosed

Item = TypeVar("Item")

Work = Callable[[], Coroutine[Any, Any, None]]


class Items(AsyncIterator[Item]):
    """To be read with ``async for``, or `anext`.

    Waiting for an item may be cancelled, and loses none: the next call goes on with it. So with a timeout:

        async with asyncio.timeout(5):
            event = await anext(events)
    """

    def __init__(self, found: AsyncGenerator[list[Item], None]) -> None:
        """`found`: the items as they come."""
        self._found = found
        self._ready: deque[Item] = deque()
        self._next: asyncio.Task[list[Item]] | None = None
        """It waits for more, whoever waits for it. It knows nothing of us, so that it ends when we are dropped."""
        self._over = False

    def __del__(self) -> None:
        if self._next is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._next.get_loop().call_soon_threadsafe(self._next.cancel)

    async def __anext__(self) -> Item:
        while not self._ready:
            await self.come()
        return self._ready.popleft()

    def taken(self) -> list[Item]:
        """The next one, if it has come already; for any thread."""
        try:
            return [self._ready.popleft()]
        except IndexError:
            return []

    async def come(self) -> None:
        """Wait until more have come. Raises what ends them, once, then StopAsyncIteration, as after `aclose`."""
        if self._over:
            raise StopAsyncIteration
        if self._next is None:
            self._next = asyncio.create_task(self._more(self._found))
            self._next.add_done_callback(self._heard)
        task = self._next
        if task.get_loop() is not asyncio.get_running_loop():  # it would wake nobody here, and its end is not ours
            raise ClientClosed(OTHER_LOOP)
        if not task.done():
            waiter = asyncio.get_running_loop().create_future()
            wake = partial(self._wake, waiter)
            task.add_done_callback(wake)
            try:
                await waiter
            finally:
                task.remove_done_callback(wake)
        if self._over:
            raise StopAsyncIteration
        if task is self._next:  # else another waited, too, and has it
            self._next = None
            try:
                self._ready.extend(task.result())
            finally:
                del task  # else its exception, which has this frame, had itself

    async def aclose(self) -> None:
        """Read no further; whoever waits for an item hears that there is none. In another loop it does nothing."""
        if self._next is not None and self._next.get_loop() is not asyncio.get_running_loop():
            return
        self._over = True
        self._ready.clear()
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait((self._next,))
        await self._found.aclose()

    @staticmethod
    async def _more(found: AsyncGenerator[list[Item], None]) -> list[Item]:
        return await anext(found)

    @staticmethod
    def _wake(waiter: asyncio.Future[None], _: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    @staticmethod
    def _heard(task: asyncio.Task[list[Item]]) -> None:
        if not task.cancelled():
            task.exception()  # perhaps nobody waits any more, which is no fault


class SyncItems(Iterator[Item]):
    """To be read with ``for``, or `next`. An interrupted `next` loses none, the next call goes on with it; but the one
    with which it returns at that instant."""

    def __init__(
        self,
        asynchronous: Items[Item],
        run: Callable[[Coroutine[Any, Any, None]], None],
        leave: Callable[[Work], None],
    ) -> None:
        """`run` waits for what is done on the client's thread; `leave` has it done there, and doesn't wait."""
        self._asynchronous = asynchronous
        self._run = run
        self._leave = leave
        self._over = False

    def __next__(self) -> Item:
        while not self._over:
            for item in self._asynchronous.taken():
                return item
            try:
                self._run(self._asynchronous.come())
            except StopAsyncIteration:
                break
        raise StopIteration

    def close(self) -> None:
        """Read no further; a `next` that waits in another thread ends."""
        self._over = True
        self._leave(self._asynchronous.aclose)

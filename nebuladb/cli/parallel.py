"""Bounded concurrency for commands that do many small things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

Item = TypeVar("Item")


async def in_parallel(items: Iterator[Item], jobs: int, work: Callable[[Item], Awaitable[None]]) -> None:
    """Do `work` on every item, `jobs` at a time; the first exception ends it all."""

    async def worker() -> None:
        for item in items:
            await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(jobs)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Budget:
    """So many bytes may be held at a time; who asks for more than all of it, waits until nobody holds any."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes of it during the block."""
        size = min(size, self._limit)
        async with self._freed:
            await self._freed.wait_for(lambda: self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            async with self._freed:
                self._held -= size
                self._freed.notify_all()

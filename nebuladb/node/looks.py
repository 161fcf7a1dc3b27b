"""Reads of clients that wait for rows from the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from nebuladb.errors import NebulaError, TooManyRequests, Unavailable
from nebuladb.kv.loans import Misses
from nebuladb.kv.store import Store
from nebuladb.node.fetcher import ROWS_AT_ONCE, Fetcher, Values

MAX_LOOKS: Final = 10_000
"""Reads that may wait for the disk; it gives some thousand rows a second at best."""

T = TypeVar("T")


class Looks:
    """Those of one loop iteration share fetches. For the loop's thread."""

    def __init__(self, fetcher: Fetcher, store: Callable[[int], Store]) -> None:
        """`store` gives a group's store, or raises."""
        self._fetcher = fetcher
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._asked: list[tuple[bytes, asyncio.Future[bytes | None]]] = []
        self.waiting = 0
        """Reads in progress."""

    async def read(self, group: int, store: Store, read: Callable[[Store], T]) -> tuple[Store, T]:
        """What `read` gives of `store`, and `store`; or as `look`, where that takes the disk."""
        try:
            return store, read(store)
        except Misses as misses:
            return await self.look(group, misses, read)

    async def look(self, group: int, misses: Misses, read: Callable[[Store], T]) -> tuple[Store, T]:
        """What `read`, which met `misses`, gives once its rows are here, and the store as it was then.

        Raises what `read` raises, `TooManyRequests`, or `Unavailable` if the store was replaced meanwhile.
        """
        if self.waiting >= MAX_LOOKS:
            raise TooManyRequests("this node has too many reads that wait for its disk; back off and try again")
        store = self._store(group)
        held: list[bytes] = []
        self.waiting += 1
        try:
            while True:
                rows = list(misses.rows)
                store.borrow(rows)
                held += rows
                store.supply(rows, await asyncio.gather(*map(self._fetch, rows)))
                if self._store(group) is not store:
                    raise Unavailable("the shard's data was replaced during the read; try again")
                try:
                    return store, read(store)
                except Misses as more:
                    misses = more
        finally:
            self.waiting -= 1
            store.give_back(held)

    def _fetch(self, row: bytes) -> asyncio.Future[bytes | None]:
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._send)
        self._asked.append((row, future))
        return future

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        for start in range(0, len(asked), ROWS_AT_ONCE):
            part = asked[start : start + ROWS_AT_ONCE]
            futures = [future for _, future in part]
            self._fetcher.fetch([row for row, _ in part], partial(self._hand_over, futures))

    def _hand_over(self, futures: list[asyncio.Future[bytes | None]], values: Values | BaseException) -> None:
        self._loop.call_soon_threadsafe(_settle, futures, values)


def _settle(futures: list[asyncio.Future[bytes | None]], values: Values | BaseException) -> None:
    for place, future in enumerate(futures):
        if not future.done():
            if isinstance(values, BaseException):
                future.set_exception(values if isinstance(values, NebulaError) else Unavailable(str(values)))
            else:
                future.set_result(values[place])

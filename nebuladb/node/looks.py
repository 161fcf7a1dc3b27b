"""Reads of clients that wait for rows from the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, TypeVar

from nebuladb.errors import NebulaError, TooManyRequests, Unavailable
from nebuladb.kv.limits import MAX_REQUEST_BYTES
from nebuladb.kv.loans import FETCH_BYTES, Misses
from nebuladb.kv.store import Store
from nebuladb.node.ports import Fetches
from nebuladb.node.rows_asked import ROWS_AT_ONCE, Values

MAX_LOOKS: Final = 10_000
"""Reads that may wait for the disk; it gives some thousand rows a second at best."""
LOOK_BYTES: Final = 32 << 20
"""Bytes of rows that all reads of a node hold and wait for, about, before the next row is asked for: eight fetches, two
for each thread. The read that came first goes on beyond it."""
ENOUGH_BYTES: Final = 16 << 20
"""A read of which so much has come goes on before all that it lacks is here: it may not want the rest. Each time it
begins anew, and takes some milliseconds of the loop for what it has."""

LongRead = AbstractAsyncContextManager[object]
"""What a long read enters to have its turn among the others (``api.pace``)."""
T = TypeVar("T")


def _forgotten(misses: Misses) -> list[bytes]:
    """The rows of `misses`, which keeps nothing else: its traceback has the frames of the read, with all that this had
    found by then, also in memory, for as long as it waits."""
    misses.__traceback__ = misses.__context__ = None
    return list(misses.rows)


class _Look:
    """One read."""

    __slots__ = ("came", "got", "held", "new", "rows", "size", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rows: Sequence[bytes] = ()
        """What it waits for and nobody was asked for yet."""
        self.held: list[bytes] = []
        """What it has borrowed. Nothing before it is asked for: a loan stays for all who have borrowed it, and so would
        whatever others fetch of what those who still wait want."""
        self.came: asyncio.Future[Values]
        """The values of all that it lacks, or the first ones, of `ENOUGH_BYTES`."""
        self.got: Values = []
        """Those that are here."""
        self.new = 0
        """Their bytes."""
        self.size = 0
        """Bytes of the rows that have come, which stay until it is done."""

    def give_back(self, rows: Sequence[bytes]) -> None:
        """The last that were asked for haven't come."""
        if rows:
            self.store.give_back(rows)
            del self.held[-len(rows) :]


class Looks:
    """Those of one loop iteration share fetches. For the loop's thread.

    A read keeps the rows that it has got until the last has come, and how large they are is known when they are here.
    So rows are asked for in the order in which the reads came, as long as there is room for one more fetch. The first
    read's are asked for in any case: it needs no other's room to get on, so none waits for ever, also not one that is
    larger than the room; and no more than one at a time is.
    """

    def __init__(self, fetcher: Fetches, store: Callable[[int], Store]) -> None:
        """`store` gives a group's store, or raises."""
        self._fetcher = fetcher
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._looks: dict[_Look, None] = {}
        """Reads in progress, in the order in which they came."""
        self._due = False
        self.size = 0
        """Bytes of rows that they hold, and room for those that are on their way."""

    @property
    def waiting(self) -> int:
        """Reads in progress."""
        return len(self._looks)

    async def read(
        self, group: int, store: Store, read: Callable[[Store], T], turn: LongRead | None = None
    ) -> tuple[Store, T]:
        """What `read` gives of `store`, and `store`; or as `look`, where that takes the disk."""
        try:
            if turn is None:
                return store, read(store)
            async with turn:
                store = self._store(group)  # a newer one does as well, and the old one may be closed
                return store, read(store)
        except Misses as misses:
            return await self.look(group, misses, read, turn)

    async def look(
        self, group: int, misses: Misses, read: Callable[[Store], T], turn: LongRead | None = None
    ) -> tuple[Store, T]:
        """What `read`, which met `misses`, gives once its rows are here, and the store as it was then. Each try is
        within `turn`, and no wait for the disk is.

        Raises what `read` raises, `TooManyRequests`, or `Unavailable` if the store was replaced meanwhile.
        """
        if len(self._looks) >= MAX_LOOKS:
            raise TooManyRequests("this node has too many reads that wait for its disk; back off and try again")
        store = self._store(group)
        look = _Look(store)
        self._looks[look] = None
        try:
            while True:
                rows = look.rows = _forgotten(misses)
                look.came, look.got, look.new = self._loop.create_future(), [], 0
                self._schedule()
                store.supply(rows, await look.came)
                async with turn or nullcontext():
                    if self._store(group) is not store:
                        raise Unavailable("the shard's data was replaced during the read; try again")
                    try:
                        return store, read(store)
                    except Misses as more:
                        misses = more
                        if misses.alone:
                            self._let_go(look)
        finally:
            del self._looks[look]
            self._let_go(look)
            self._schedule()

    def _let_go(self, look: _Look) -> None:
        """It wants nothing any more of what it has got."""
        self.size -= look.size
        look.size = 0
        look.store.give_back(look.held)
        look.held = []

    def _schedule(self) -> None:
        if self._looks and not self._due:
            self._due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Ask for the rows for which there is room."""
        self._due = False
        asked: list[_Look] = []
        count = 0
        for place, look in enumerate(self._looks):
            if not look.rows:
                continue
            if self.size >= LOOK_BYTES and place:
                break
            asked.append(look)
            count += len(look.rows)
            if count >= ROWS_AT_ONCE or self.size >= LOOK_BYTES:
                self._fetch(asked)
                asked, count = [], 0
        if asked:
            self._fetch(asked)

    def _fetch(self, looks: list[_Look]) -> None:
        asked = [(look, look.rows) for look in looks]
        rows = [row for look in looks for row in look.rows]
        for look in looks:
            look.store.borrow(look.rows)
            look.held += look.rows
            look.rows = ()
        room = min(FETCH_BYTES, len(rows) * MAX_REQUEST_BYTES)
        self.size += room

        def done(values: Values | BaseException) -> None:
            self._loop.call_soon_threadsafe(self._fetched, asked, room, values)

        self._fetcher.fetch(rows, done)

    def _fetched(self, asked: list[tuple[_Look, Sequence[bytes]]], room: int, values: Values | BaseException) -> None:
        self.size -= room
        start = 0
        for look, rows in asked:
            if not look.came.done():
                if not isinstance(values, BaseException):
                    self._hand_over(look, rows, values[start : start + len(rows)])
                elif len(asked) > 1:
                    look.give_back(rows)
                    look.rows = rows
                    self._fetch([look])  # alone: damage is the error of who has asked for it
                else:
                    look.came.set_exception(values if isinstance(values, NebulaError) else Unavailable(str(values)))
            start += len(rows)
        self._schedule()

    def _hand_over(self, look: _Look, rows: Sequence[bytes], values: Values) -> None:
        look.give_back(rows[len(values) :])
        size = sum(map(len, filter(None, values)))
        look.size += size
        look.new += size
        self.size += size
        look.got += values
        look.rows = rows[len(values) :]
        if not look.rows or look.new >= ENOUGH_BYTES:
            look.rows = ()
            look.came.set_result(look.got)

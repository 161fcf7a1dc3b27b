"""A snapshot of a RocksDB: see `Snapshot`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nebuladb.errors import InvariantViolation, StoreClosed, StoreError
from nebuladb.storage.cursor import Cursor
from nebuladb.storage.rocks_errors import classify


class RocksSnapshot:
    """See `Snapshot`.

    rocksdict's own, the view, honours the snapshot in point reads only: its iterators see whatever was written before
    they were made. So those that serve the scans are made together with it: one for each span, or one for everything.
    """

    def __init__(
        self,
        view: Any,
        cursors: dict[tuple[bytes, bytes], Cursor],
        closed: Callable[[RocksSnapshot], None],
    ) -> None:
        self._closed = closed
        self._view = view
        self._cursors = cursors

    def get(self, key: bytes) -> bytes | None:
        view = self._view  # whoever closes it may be another thread
        if view is None:
            raise StoreClosed("the snapshot is closed")
        try:
            value: bytes = view[key]
        except Exception as error:
            if str(error) == "key not found":
                return None
            raise classify(error) from error
        return value

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if low >= high:
            return
        cursor = self._cursor_of(low, high)
        cursor.open()
        try:
            yield from cursor.walk(low, high, reverse=reverse)
        except StoreError:
            raise
        except Exception as error:
            raise classify(error) from error

    def close(self) -> None:
        self._view = None
        for cursor in self._cursors.values():
            cursor.steps = None
        self._closed(self)

    def _cursor_of(self, low: bytes, high: bytes) -> Cursor:
        for (first, end), cursor in self._cursors.items():
            if first <= low and (high <= end or not end):
                return cursor
        raise InvariantViolation("a scan of a snapshot goes beyond its spans")

"""A RocksDB iterator that several scans share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from nebuladb.errors import StoreClosed


class Steps(Protocol):
    """What is used of rocksdict's iterator; an error of the disk is what `status` raises, and nothing else says."""

    def seek(self, key: bytes, /) -> None: ...
    def seek_for_prev(self, key: bytes, /) -> None: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def valid(self) -> bool: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...
    def status(self) -> None: ...


class Cursor:
    """An iterator, which one scan or those of one snapshot take in turns.

    `close` takes it away from them: RocksDB stays open as long as an iterator lives.
    """

    __slots__ = ("scan", "steps")

    def __init__(self, steps: Steps) -> None:
        self.steps: Steps | None = steps
        self.scan: object = None
        """The scan that it stands at the last key of."""

    def open(self) -> Steps:
        """The iterator, not to be held across a `yield`."""
        if self.steps is None:
            raise StoreClosed("the snapshot or the database was closed")
        return self.steps

    def walk(self, low: bytes, high: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """See `Reader.scan`."""
        scan, key = object(), b""
        begun = False
        while True:
            steps = self.open()
            if self.scan is scan:
                steps.prev() if reverse else steps.next()
            else:  # at the beginning, and where another scan moved it
                self.scan = scan
                place = key if begun else high if reverse else low
                steps.seek_for_prev(place) if reverse else steps.seek(place)
                if begun or (reverse and steps.valid() and steps.key() == high):
                    if not steps.valid():
                        break
                    steps.prev() if reverse else steps.next()  # to step an invalid iterator is a segmentation fault
                begun = True
            if not steps.valid():
                break
            key = steps.key()
            if not low <= key < high:
                break
            pair = key, steps.value()
            del steps
            yield pair
        steps.status()  # an iterator that meets a damaged block just ends

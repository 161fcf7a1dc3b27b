"""Stretches without a key, as reads have found them, so that later ones need not pass them row by row.

The row of a deleted key stays until that is compacted. Who looks for the first key of a queue, to take and delete it,
would pass all that were ever taken, a microsecond or two each, every time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from nebuladb.env import probe

MIN_ROWS: Final = 64
"""Rows of deleted keys side by side that are worth it."""
MAX_VOIDS: Final = 16
"""Of one store; the one that was found first goes."""
MAX_BYTES: Final = 1 << 10
"""Of the two rows that bound one."""


class _Void(NamedTuple):
    low: bytes
    high: bytes
    revision: int


class Voids:
    """Of one store, as rows of C; in memory only.

    Invariant: of the keys in [low, high) none existed at the void's revision, and none was written since. So none
    exists at that revision or a later one.
    """

    __slots__ = ("_current", "_voids", "revision")

    def __init__(self, current: bytes, revision: int) -> None:
        """`current`: what C's rows begin with."""
        self.revision = revision
        """The published one. Above it there are half-done deletions only, of keys that exist at it."""
        self._current = current
        self._voids: list[_Void] = []
        """Ascending, apart from each other."""

    def behind(self, low: bytes, revision: int) -> bytes:
        """Where a read at `revision` from `low` on may begin."""
        place = self._place(low)
        if place is None or revision < self._voids[place].revision:
            return low
        probe("deleted keys passed at once")
        return self._voids[place].high

    def found(self, low: bytes, high: bytes) -> None:
        """A read at `revision` met no key in [low, high)."""
        if len(low) + len(high) > MAX_BYTES:
            return
        revision = self.revision
        beside = [void for void in self._voids if void.low <= high and void.high >= low]
        for void in beside:
            low, high = min(low, void.low), max(high, void.high)
            self._voids.remove(void)
        if len(self._voids) >= MAX_VOIDS:
            self._voids.remove(min(self._voids, key=lambda void: void.revision))
        self._voids.insert(bisect_right(self._voids, low, key=_low), _Void(low, high, revision))

    def applied(self, revision: int, keys: Iterable[bytes]) -> None:
        """`revision` is the published one now; `keys` were written, or deleted, since the last one."""
        self.revision = revision
        if not self._voids:
            return
        for key in keys:
            row = self._current + key
            place = self._place(row)
            if place is not None:
                probe("key written among deleted ones")
                # What is behind it is found again if it is large. Kept, it would be cut by each key that a queue gets.
                void = self._voids.pop(place)
                if void.low < row:
                    self._voids.insert(place, void._replace(high=row))

    def _place(self, row: bytes) -> int | None:
        """Of the void that has `row`."""
        place = bisect_right(self._voids, row, key=_low) - 1
        return place if place >= 0 and row < self._voids[place].high else None


def _low(void: _Void) -> bytes:
    return void.low

"""Which of many ranges hold a key."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from nebuladb.kv.check import TO_THE_LAST

T = TypeVar("T")

BLOCK: Final = 64
"""Ranges side by side whose greatest end is kept: a look-up passes over a block that ends too early."""


class SpanIndex(Generic[T]):
    """Ranges of etcd's convention, each with its holders.

    Equal ranges are one. Those with an end lie sorted by start; a look-up goes over the blocks up to the last start
    that isn't above the key, and into those where some range reaches beyond the key. For n ranges that seldom overlap
    that is n / `BLOCK` comparisons. A change moves two lists by one, in C; the next look-up finds blocks' ends anew.
    """

    __slots__ = ("_added", "_depth", "_ends", "_holders", "_open", "_reach", "_removed", "_spans")

    def __init__(self) -> None:
        self._holders: dict[tuple[bytes, bytes], dict[T, None]] = {}
        self._spans: list[tuple[bytes, bytes]] = []
        """Sorted, those that have an end; `_ends` has their ends."""
        self._ends: list[bytes] = []
        self._open: list[bytes] = []
        """Sorted starts of those that go to the last key."""
        self._reach: list[bytes] | None = []
        """The greatest end of each block; None: to be made anew."""
        self._depth = 0
        """In how many of `_spans` a key lay at most when that was counted last: of 50,000 it takes 7 ms."""
        self._added = self._removed = 0
        """Of them since then."""

    def __len__(self) -> int:
        """Ranges, equal ones once."""
        return len(self._holders)

    @property
    def depth(self) -> int:
        """A bound on how many ranges a key lies in, equal ones once: all where they are few, and all without an end.
        It is counted when as many have come and gone as it was, but some always: so it may be twice as high."""
        if len(self._holders) <= BLOCK:
            return len(self._holders)
        if self._added + self._removed > max(BLOCK, self._depth):
            self._count()
        return self._depth + self._added + len(self._open)

    def _count(self) -> None:
        self._depth = self._added = self._removed = ended = 0
        ends = sorted(self._ends)
        for begun, (start, _) in enumerate(self._spans, 1):
            while ends[ended] <= start:
                ended += 1
            self._depth = max(self._depth, begun - ended)

    def add(self, start: bytes, end: bytes, holder: T) -> None:
        """`holder` wants the keys of [start, end), which isn't empty."""
        span = start, end
        holders = self._holders.get(span)
        if holders is None:
            holders = self._holders[span] = {}
            if end == TO_THE_LAST:
                self._open.insert(bisect_left(self._open, start), start)
            else:
                place = bisect_left(self._spans, span)
                self._spans.insert(place, span)
                self._ends.insert(place, end)
                self._reach = None
                self._added += 1
        holders[holder] = None

    def discard(self, start: bytes, end: bytes, holder: T) -> None:
        """`holder` wants them no more. Idempotent."""
        span = start, end
        holders = self._holders.get(span)
        if holders is None:
            return
        holders.pop(holder, None)
        if not holders:
            del self._holders[span]
            if end == TO_THE_LAST:
                del self._open[bisect_left(self._open, start)]
            else:
                place = bisect_left(self._spans, span)
                del self._spans[place], self._ends[place]
                self._reach = None
                self._removed += 1

    def holding(self, key: bytes) -> Iterator[T]:
        """Holders of the ranges that `key` lies in; nothing may be added or discarded until it ends."""
        if self._open:
            for start in self._open[: bisect_right(self._open, key)]:
                yield from self._holders[start, TO_THE_LAST]
        spans, ends, reach = self._spans, self._ends, self._reach
        if not spans:
            return
        if reach is None:
            reach = self._reach = [max(ends[place : place + BLOCK]) for place in range(0, len(ends), BLOCK)]
        # Those that start at the key hold it: the next greater start is at least key + 0.
        above = bisect_left(spans, (key + b"\0",))
        for block in range((above + BLOCK - 1) // BLOCK):
            if reach[block] > key:
                for place in range(block * BLOCK, min(above, (block + 1) * BLOCK)):
                    if ends[place] > key:
                        yield from self._holders[spans[place]]

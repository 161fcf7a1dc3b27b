"""Which of many ranges hold a key."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

from nebuladb.kv.check import TO_THE_LAST

T = TypeVar("T")

BLOCK: Final = 64
"""Ranges side by side whose greatest end is kept, twice as many at most: a look-up passes over a block that ends too
early."""


class SpanIndex(Generic[T]):
    """Ranges of etcd's convention, each with its holders.

    Equal ranges are one. Those with an end lie sorted by start; a look-up goes over the blocks up to the last start
    that isn't above the key, and into those where some range reaches beyond the key. For n ranges that seldom overlap
    that is n / `BLOCK` comparisons. A change makes one block anew, or two.
    """

    __slots__ = ("_added", "_blocks", "_depth", "_firsts", "_holders", "_open", "_reach", "_removed")

    def __init__(self) -> None:
        self._holders: dict[tuple[bytes, bytes], dict[T, None]] = {}
        self._blocks: list[list[tuple[bytes, bytes]]] = []
        """Sorted, those that have an end; none is empty."""
        self._firsts: list[tuple[bytes, bytes]] = []
        """Of each block."""
        self._reach: list[bytes] = []
        """The greatest end of each block."""
        self._open: list[bytes] = []
        """Sorted starts of those that go to the last key."""
        self._depth = 0
        """In how many of those in `_blocks` a key lay at most when that was counted last: of 50,000 it takes 7 ms."""
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
        ends = sorted([end for block in self._blocks for _, end in block])
        for begun, (start, _) in enumerate(chain.from_iterable(self._blocks), 1):
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
                place = max(0, bisect_right(self._firsts, span) - 1)
                block = self._blocks[place] if self._blocks else []
                insort(block, span)
                self._changed(place, block)
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
                place = bisect_right(self._firsts, span) - 1
                block = self._blocks[place]
                del block[bisect_left(block, span)]
                self._changed(place, block)
                self._removed += 1

    def _changed(self, place: int, block: list[tuple[bytes, bytes]]) -> None:
        """`block` is at `place` now: in halves if it is large, with the next one if it is small."""
        here = slice(place, place + 1)
        if len(block) < BLOCK // 2 and place + 1 < len(self._blocks):
            here = slice(place, place + 2)
            block = block + self._blocks[place + 1]
        middle = len(block) // 2 if len(block) > 2 * BLOCK else len(block)
        parts = [part for part in (block[:middle], block[middle:]) if part]
        self._blocks[here] = parts
        self._firsts[here] = [part[0] for part in parts]
        self._reach[here] = [max([end for _, end in part]) for part in parts]

    def holding(self, key: bytes) -> Iterator[T]:
        """Holders of the ranges that `key` lies in; nothing may be added or discarded until it ends."""
        if self._open:
            for start in self._open[: bisect_right(self._open, key)]:
                yield from self._holders[start, TO_THE_LAST]
        reach = self._reach
        # Those that start at the key hold it: the next greater start is at least key + 0.
        for place in range(bisect_left(self._firsts, (key + b"\0",))):
            if reach[place] > key:
                for span in self._blocks[place]:
                    if span[0] <= key < span[1]:
                        yield from self._holders[span]

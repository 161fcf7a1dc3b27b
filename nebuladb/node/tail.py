"""How much of a log is kept, and for whom: the slow-follower rule.

What every replica has is cut. For a replica that isn't heard from a tail of bounded length is kept, and `LAG_TAILS` of
them for one that lives, but lags; beyond that it gets a snapshot, which costs less than the log would. While a snapshot
is on its way, what follows its index is kept: without that it would be useless when it is in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from nebuladb.raft import Entry
from nebuladb.raft.progress import Progress

KEEP_ENTRIES: Final = 100_000
"""Some minutes of a busy shard, whose entries carry many commands each."""
KEEP_BYTES: Final = 64 << 20
"""What a node that restarts in half a minute has missed at 2 MiB a second. In bytes of entry records, for each shard
and replica that is away."""
CUT_ENTRIES: Final = 4_096
"""Entries by which the log may exceed what is kept before it is cut: a cut is a range tombstone."""
CUT_BYTES: Final = 16 << 20
"""Or so many bytes."""
LAG_TAILS: Final = 8
STRIDE: Final = 256
"""Entries, or `STRIDE_BYTES`, between two places whose distance in bytes is known."""
STRIDE_BYTES: Final = 64 << 10


class TailLimits(NamedTuple):
    """What an operator may set, and tests make small."""

    entries: int = KEEP_ENTRIES
    size: int = KEEP_BYTES
    cut_entries: int = CUT_ENTRIES
    cut_size: int = CUT_BYTES


class LogTail:
    """Where in one replica's log so many bytes lie. Entries from before the process started count as no bytes; their
    number is known. Invariant: `_marks` ascend in both."""

    __slots__ = ("_last", "_marks", "_size")

    def __init__(self, last: int) -> None:
        self._last = last
        self._size = 0
        self._marks: list[tuple[int, int]] = [(last, 0)]
        """(index, bytes up to it since the process started)"""

    def appended(self, entries: list[Entry]) -> None:
        """`entries` were handed to the log; they replace what was at and behind their first index."""
        marks = self._marks
        first = entries[0].index
        if first <= self._last:
            while len(marks) > 1 and marks[-1][0] >= first:
                marks.pop()
            if marks[-1][0] >= first:
                marks[-1] = (first - 1, marks[-1][1])
            self._size = marks[-1][1]
        for entry in entries:
            self._size += len(entry.record)
        self._last = entries[-1].index
        if self._last - marks[-1][0] >= STRIDE or self._size - marks[-1][1] >= STRIDE_BYTES:
            marks.append((self._last, self._size))

    def size_up_to(self, index: int) -> int:
        """Bytes up to `index`, about, on a scale of its own."""
        if index >= self._last:
            return self._size
        place = bisect_left(self._marks, (index + 1, 0)) - 1
        return self._marks[max(place, 0)][1]

    def cut(self, index: int) -> None:
        """The log starts behind `index` now."""
        place = bisect_left(self._marks, (index + 1, 0)) - 1
        if place > 0:
            del self._marks[:place]

    def behind(self, entries: int, size: int) -> int:
        """The index after which there are `entries` entries, or at least `size` bytes, about; the higher of both."""
        wanted = self._size - size
        place = bisect_right(self._marks, wanted, key=lambda mark: mark[1]) - 1
        by_size = self._marks[place][0] if wanted > 0 and place >= 0 else 0
        return max(self._last - entries, by_size, 0)

    def needed(self, limits: TailLimits, peers: Iterable[tuple[int, Progress]], held: Mapping[int, int]) -> int:
        """A leader's: the log behind this index is kept for one or another of `peers` (by replica id). `held`: replica
        → index of the snapshot that is on its way there."""
        short = self.behind(limits.entries, limits.size)
        long = self.behind(limits.entries * LAG_TAILS, limits.size * LAG_TAILS)
        lowest = 1 << 63
        for replica, progress in peers:
            index = held.get(replica)
            if index is None:
                index = max(progress.match, long if progress.lives else short)
            lowest = min(lowest, index)
        return lowest

"""Rows that the disk was asked for, while those who asked still need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nebuladb.storage.engine import DELETE_RANGE, PUT, Batch

FIRST_ROWS: Final = 128
MOST_ROWS: Final = 1024
"""Rows asked for at once: the first time, and where those have turned out to be small."""
FETCH_BYTES: Final = 4 << 20
"""Bytes after which a fetch ends, and as many as are asked for at once, by a guess of how large rows are. No more than
a slice may supersede (`Limits.slice_bytes`): what it leaves over is given back with the rest."""
FIRST_READ: Final = 4
MOST_READ: Final = 16
"""Rows that are read in one go: the first time, and where those before were small. Nothing tells how large one is
before it is here, and this many of the largest are 24 MiB."""


class Misses(Exception):
    """A read from memory alone met rows that aren't there. Nothing has changed: borrow `rows`, fetch them, try again.

    No error of the tree: it is no answer, and never reaches a client.
    """

    def __init__(self, rows: Sequence[bytes], *, alone: bool = False) -> None:
        super().__init__(f"{len(rows)} rows are on the disk only")
        self.rows = rows
        self.alone = alone
        """What was fetched for the read before isn't needed with them."""


class Room:
    """For the bytes of one fetch."""

    def __init__(self) -> None:
        self.left = FETCH_BYTES
        """Below 0: more has come."""

    def spend(self, size: int) -> int:
        """So many bytes have come; how many more may."""
        self.left -= size
        return self.left


def fetched(
    get_many: Callable[[Sequence[bytes]], Sequence[bytes | None]], rows: Sequence[bytes], spend: Callable[[int], int]
) -> list[bytes | None]:
    """The values of the first of `rows`, one at least, as far as there is room: `spend` is told of the bytes that have
    come, and says how many more may."""
    values: list[bytes | None] = []
    count, left = FIRST_READ, 1
    while len(values) < len(rows) and left > 0:
        some = get_many(rows[len(values) : len(values) + count])
        values += some
        size = sum(map(len, filter(None, some)))
        left = spend(size)
        count = max(1, min(2 * count, MOST_READ, left * len(some) // (size + 1)))
    return values


class Loans:
    """Borrowed rows and their values, true at any time: a write in between changes the loan too.

    (A fetch sees x = 1; before it is back, background work deletes x; without this the reader would see x = 1.)
    """

    __slots__ = ("ahead", "counts", "rows")

    def __init__(self) -> None:
        self.ahead = FIRST_ROWS
        """Rows that may be asked for at once. Nothing tells how large they are but those that came last."""
        self.rows: dict[bytes, bytes | None] = {}
        """What is known of borrowed rows; a missing one is still being fetched."""
        self.counts: dict[bytes, int] = {}
        """How many have borrowed each; empty: nothing is on loan."""

    def __len__(self) -> int:
        return len(self.counts)

    def borrow(self, rows: Iterable[bytes]) -> None:
        """Before the fetch begins. Each row may be borrowed by many."""
        counts = self.counts
        for row in rows:
            counts[row] = counts.get(row, 0) + 1

    def supply(self, rows: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """What a fetch that began after `borrow` has found, of the first of `rows` if it ended before the others: those
        are missed again. What was written meanwhile is newer."""
        size, count = sum(map(len, filter(None, values))), len(values)
        if size > FETCH_BYTES:
            self.ahead = max(1, count * FETCH_BYTES // size)
        elif size <= FETCH_BYTES // 2:
            self.ahead = max(self.ahead, min(2 * count, MOST_ROWS))
        for row, value in zip(rows, values, strict=False):
            if row in self.counts:
                self.rows.setdefault(row, value)

    def give_back(self, rows: Iterable[bytes]) -> None:
        """One borrower needs them no more."""
        for row in rows:
            left = self.counts.get(row, 0) - 1
            if left > 0:
                self.counts[row] = left
            elif self.counts.pop(row, None) is not None:
                self.rows.pop(row, None)

    def written(self, batch: Batch) -> None:
        """The engine has taken `batch`. For who has seen that something is on loan."""
        for kind, row, value in batch.operations:
            if kind == DELETE_RANGE:
                for borrowed in self.counts:
                    if row <= borrowed < value:
                        self.rows[borrowed] = None
            elif row in self.counts:
                self.rows[row] = value if kind == PUT else None

"""Where rows were deleted, and how a database is compacted there, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nebuladb.storage.engine import DELETE, DELETE_RANGE, Batch

MAX_SPANS: Final = 1_024
"""Beyond so many they become one."""
Span = tuple[bytes, bytes]
"""Keys [low, high)."""


class Spans:
    """One span for each of the keys' prefixes of `prefix` bytes under which anything was deleted."""

    def __init__(self, prefix: int) -> None:
        self._prefix = prefix
        self._spans: dict[bytes, Span] = {}

    def __bool__(self) -> bool:
        return bool(self._spans)

    def add(self, low: bytes, high: bytes) -> None:
        """Rows of [low, high) were deleted; all with the prefix of `low`, or of one that is shorter."""
        if low[: self._prefix] in self._spans:
            first, end = self._spans[low[: self._prefix]]
            low, high = min(first, low), max(end, high)
        elif len(self._spans) >= MAX_SPANS:
            low = min(low, *(first for first, _ in self._spans.values()))
            high = max(high, *(end for _, end in self._spans.values()))
            self._spans.clear()
        self._spans[low[: self._prefix]] = low, high

    def deleted(self, batch: Batch) -> None:
        """What `batch` deletes was."""
        for kind, key, value in batch.operations:
            if kind == DELETE:
                self.add(key, key + b"\0")
            elif kind == DELETE_RANGE:
                self.add(key, value)

    def take(self) -> list[Span]:
        """All there are, ascending; they are gone from here."""
        spans = sorted(self._spans.values())
        self._spans = {}
        return spans


def pieces(tables: Iterable[tuple[bytes, bytes, int]], spans: Iterable[Span], most: int) -> Iterator[Span]:
    """`spans`, cut where the `tables` (first and last key, bytes) in each come to `most` bytes or more. One in which
    there is no table is left out."""
    ordered = sorted(tables, key=lambda table: table[1])
    for low, high in sorted(spans):
        begin, size = low, 0
        for first, last, bytes_ in ordered:
            if last < low or first >= high:
                continue
            size += bytes_
            if size >= most and begin < last < high:
                yield begin, last
                begin, size = last, 0
        if begin > low or size:
            yield begin, high

"""Which entries a log holds and in which terms, without the entries."""

from __future__ import annotations

from bisect import bisect_left

from nebuladb.errors import InvariantViolation
from nebuladb.raft.entry import Entry


class LogShape:
    """A log from behind `start` to `last`, both (index, term); equal when it is empty. It never changes: what a batch
    makes of it is another one, so that a write which is refused leaves the log's shape as it is.

    Invariant: `runs` is [(index where a term begins, the term)], ascending in both; the first one begins at `start`.
    So the term of any entry is known without the disk, in memory that grows with elections and not with entries.
    """

    __slots__ = ("last", "runs", "start")

    def __init__(
        self, start: tuple[int, int], last: tuple[int, int] | None = None, runs: tuple[tuple[int, int], ...] = ()
    ) -> None:
        """With `start` alone, an empty log."""
        self.start = start
        self.last = last or start
        self.runs = runs or (start,)

    def term(self, index: int) -> int:
        """Term of the entry at `index`, start <= index <= last."""
        if not self.start[0] <= index <= self.last[0]:
            raise InvariantViolation(f"index {index} is outside of the log {self}")
        return self.runs[bisect_left(self.runs, (index + 1, 0)) - 1][1]

    def appended(self, entries: list[Entry]) -> LogShape:
        """The shape with `entries` in place of everything from `entries[0].index` on; they are contiguous, and so is
        the result."""
        first = entries[0].index
        (index, term), runs = self.last, self.runs
        if not self.start[0] < first <= index + 1:
            raise InvariantViolation(f"entry {first} doesn't continue the log {self}")
        if first <= index:
            index, term = first - 1, self.term(first - 1)
            runs = tuple([run for run in runs if run[0] < first])
        for entry in entries:
            index += 1
            if entry.index != index or entry.term < term:  # the text only when it is needed: this runs for every entry
                raise InvariantViolation(f"entry {(entry.index, entry.term)} after {(index - 1, term)}")
            if entry.term != term:
                term = entry.term
                runs = (*runs, (index, term))
        return LogShape(self.start, (index, term), runs)

    def cut(self, index: int, term: int) -> tuple[LogShape, int]:
        """The log from behind (`index`, `term`) on, and the index below which everything is to be deleted.

        The cut comes from a snapshot. A log that doesn't hold that entry, being too short or having another term there,
        contradicts it, and nothing of the log stays (paper, figure 13, step 7).
        """
        if index < self.start[0]:
            raise InvariantViolation(f"a cut at {index} of the log {self}")
        start = (index, term)
        if index > self.last[0] or self.term(index) != term:
            return LogShape(start), self.last[0] + 1
        return LogShape(start, self.last, (start, *(run for run in self.runs if run[0] > index))), index + 1

    def __repr__(self) -> str:
        return f"{self.start}..{self.last}"

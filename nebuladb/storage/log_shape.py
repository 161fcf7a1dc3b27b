"""Which entries a log holds and in which terms, without the entries."""

from __future__ import annotations

from bisect import bisect_right

from nebuladb.errors import InvariantViolation, invariant
from nebuladb.raft.entry import Entry


class LogShape:
    """A log from behind `start` to `last`, both (index, term); equal when it is empty.

    Invariant: `runs` is [(index where a term begins, the term)], ascending in both; the first one begins at `start`.
    So the term of any entry is known without the disk, in memory that grows with elections and not with entries.
    """

    __slots__ = ("last", "runs", "start")

    def __init__(self, index: int, term: int) -> None:
        self.start = (index, term)
        self.last = (index, term)
        self.runs = [(index, term)]

    def copy(self) -> LogShape:
        """One to try changes on."""
        copy = LogShape(*self.start)
        copy.last = self.last
        copy.runs = self.runs.copy()
        return copy

    def term(self, index: int) -> int:
        """Term of the entry at `index`, start <= index <= last."""
        if not self.start[0] <= index <= self.last[0]:
            raise InvariantViolation(f"index {index} is outside of the log {self}")
        return self.runs[bisect_right(self.runs, index, key=lambda run: run[0]) - 1][1]

    def append(self, entries: list[Entry]) -> tuple[int, int]:
        """Replace everything from `entries[0].index` on with `entries`; they are contiguous, and so is the result.

        Returns the indexes [low, high) that were there before and are to be deleted, the overwritten ones too.
        """
        first, old_last = entries[0].index, self.last[0]
        if not self.start[0] < first <= old_last + 1:
            raise InvariantViolation(f"entry {first} doesn't continue the log {self}")
        if first <= old_last:
            self.last = (first - 1, self.term(first - 1))
            while self.runs[-1][0] >= first:
                self.runs.pop()
        index, term = self.last
        for entry in entries:
            index += 1
            if entry.index != index or entry.term < term:  # the text only when it is needed: this runs for every entry
                raise InvariantViolation(f"entry {entry[:2]} after {(index - 1, term)}")
            if entry.term != term:
                term = entry.term
                self.runs.append((index, term))
        self.last = (index, term)
        return first, old_last + 1

    def cut(self, index: int, term: int) -> tuple[int, int]:
        """Let the log start behind (`index`, `term`). Returns the indexes [low, high) that are to be deleted.

        A log that doesn't hold that entry (too short, or another term there) contradicts the snapshot that the cut
        comes from, and nothing of it stays (paper, figure 13, step 7).
        """
        low = self.start[0] + 1
        invariant(index >= self.start[0], f"a cut at {index} of the log {self}")
        if index > self.last[0] or self.term(index) != term:
            high = self.last[0] + 1
            self.last = (index, term)
            self.runs = [(index, term)]
        else:
            high = index + 1
            self.runs = [(index, term)] + [run for run in self.runs if run[0] > index]
        self.start = (index, term)
        return low, high

    def __repr__(self) -> str:
        return f"{self.start}..{self.last}"

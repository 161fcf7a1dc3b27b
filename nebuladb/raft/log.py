"""A replica's log: what is durable behind a `LogReader`, and in memory what isn't durable, committed or applied yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import InvariantViolation, invariant
from nebuladb.raft.entry import CONFIGURATION, Entry
from nebuladb.raft.ready import LogReader

CONFLICT_SCAN: Final = 4096
"""Entries that the search for a conflicting term walks back at most; a longer conflict takes more than one round."""

SCAN_BYTES: Final = 1 << 20
"""Of entries that are looked through at once for configurations."""

FORGOTTEN: Final = (
    "A directory, or a part of one, was put back from an older copy, or a disk lost what it had said was durable; that "
    "node must not take part as it is"
)
"""What to say where a log is older than what was acknowledged of it, which nothing but that explains (S15)."""


class RaftLog:
    """Invariants: start <= commit <= last, applied <= commit, durable <= last; what is committed never changes.

    Every entry above `durable` or `commit` that came since the start is in memory. What is committed and durable leaves
    it when it is applied, or when more comes: the log store keeps the recent entries of all groups under one bound
    (``storage.log_reader``). The caller writes entries in the order that `take` returns them.
    """

    __slots__ = (
        "_cached_after", "_cached_term", "_changes", "_entries", "_reader", "_unscanned",
        "applied", "commit", "durable", "last", "last_term", "start", "start_term", "taken",
    )  # fmt: skip

    def __init__(self, reader: LogReader, commit: int, applied: int) -> None:
        self._reader = reader
        self.start, self.start_term = reader.start()
        self.last, self.last_term = reader.last()
        self.commit = max(commit, applied, self.start)
        self.applied = applied
        self.durable = self.last
        self.taken = self.last
        """The entries up to here were handed out to be written."""
        self._entries: list[Entry] = []
        self._cached_after = self.last  # `_entries` are those after this index, whose entry has the term
        self._cached_term = self.last_term
        self._changes: list[int] = []  # configurations among the entries that came since the start
        self._unscanned = self.last  # those before came earlier, and nobody has looked yet
        if self.commit > self.last:
            raise self._forgot(self.commit)
        self.check()

    def check(self) -> None:
        """Raise `InvariantViolation` unless the invariants hold."""
        invariant(self.start <= self.applied, f"applied {self.applied} lies before the log's start {self.start}")
        invariant(self.applied <= self.commit, f"applied {self.applied} beyond commit {self.commit}")
        invariant(self.commit <= self.last, f"commit {self.commit} beyond the log's last index {self.last}")
        invariant(self.durable <= self.taken <= self.last, f"durable {self.durable} beyond {self.taken}, {self.last}")
        invariant(self._cached_after <= self.durable, "an entry that isn't durable left the memory")
        invariant(self.applied <= self._cached_after, "an applied entry is still in memory")
        invariant(self._cached_after + len(self._entries) == self.last, "the entries in memory don't end the log")

    def term(self, index: int) -> int:
        """Term of the entry at `index`, start <= index <= last."""
        if index == self.last:
            return self.last_term
        if index == self._cached_after:
            return self._cached_term
        position = index - self._cached_after - 1
        if position >= 0 and index < self.last:
            return self._entries[position].term
        if index == self.start:
            return self.start_term
        invariant(self.start < index < self.last, f"term of {index} asked of a log of {self.start} to {self.last}")
        return self._reader.term(index)

    def covers(self, index: int, term: int) -> bool:
        """Whether a log that ends with (`index`, `term`) is at least as up to date as this one (paper §5.4.1)."""
        return term > self.last_term or (term == self.last_term and index >= self.last)

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """(index, term) of the last entry at or below `index` whose term is `term` at most.

        That is the last one that can equal an entry of another log in which `index` has `term`. After `CONFLICT_SCAN`
        entries it returns the one it has come to.
        """
        index = min(index, self.last)
        low = max(self.start, index - CONFLICT_SCAN)
        if index < low:
            return index, 0
        found = self.term(index)
        while found > term and index > low:
            index -= 1
            found = self.term(index)
        return index, found

    def append(self, entry: Entry) -> None:
        """Append the next entry: a leader's own way (it never overwrites, paper §5.3)."""
        self._evict(min(self.commit, self.durable))
        self._entries.append(entry)
        if entry.kind == CONFIGURATION:
            self._changes.append(entry.index)
        self.last = entry.index
        self.last_term = entry.term

    def splice(self, entries: Sequence[Entry]) -> None:
        """Make the log hold `entries`, which follow an entry that matches; cut it only where it conflicts with them.

        (An append that overtook a later one must not take away what the later one brought.)
        """
        if entries[0].index != self.last + 1:
            entries = self._missing(entries)
            if not entries:
                return
            if entries[0].index <= self.last:
                self._truncate(entries[0].index)
        self._evict(min(self.commit, self.durable))
        self._entries.extend(entries)
        self._changes += [entry.index for entry in entries if entry.kind == CONFIGURATION]
        self.last = entries[-1].index
        self.last_term = entries[-1].term

    def _missing(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        for position, entry in enumerate(entries):
            if entry.index > self.last or self.term(entry.index) != entry.term:
                return entries[position:]
        return []

    def _truncate(self, index: int) -> None:
        """Drop the entries from `index` on; more follow at once."""
        invariant(index > self.commit, f"entry {index} conflicts, but {self.commit} is committed")
        self.last_term = self.term(index - 1)
        self.last = index - 1
        position = self.last - self._cached_after
        if position >= 0:
            del self._entries[position:]
        else:
            self._entries.clear()
            self._cached_after, self._cached_term = self.last, self.last_term
        self.taken = min(self.taken, self.last)
        self.durable = min(self.durable, self.last)
        self._changes = [change for change in self._changes if change <= self.last]
        self._unscanned = min(self._unscanned, self.last)

    def take(self) -> list[Entry]:
        """Entries that are to be written and weren't taken yet."""
        entries = self._entries[self.taken - self._cached_after :]
        self.taken = self.last
        return entries

    def made_durable(self, index: int, term: int) -> bool:
        """The log is durable up to (`index`, `term`), unless that was overwritten since (S2). Returns if it's news."""
        if index <= self.durable or index > self.taken or self.term(index) != term:
            return False
        self.durable = index
        return True

    def commit_to(self, index: int) -> bool:
        """Everything up to `index` is committed. Returns whether that is news; commit never goes back."""
        if index <= self.commit:
            return False
        if index > self.last:
            raise self._forgot(index)
        self.commit = index
        return True

    def _forgot(self, index: int) -> InvariantViolation:
        """We acknowledged or applied `index` once, and the log ends below it (S15)."""
        return InvariantViolation(
            f"index {index} is committed and was held here, and the log ends at {self.last}: this node's log is older "
            f"than what it acknowledged. {FORGOTTEN}: run `nebula-cli member replace` with this node's name"
        )

    def applied_to(self, index: int) -> None:
        """Everything up to `index` was applied."""
        if not self.applied <= index <= min(self.commit, self.durable):
            where = f"committed {self.commit}, durable {self.durable}, applied {self.applied}"
            raise InvariantViolation(f"{index} was applied, but {where}")
        self.applied = index
        self._evict(index)
        if self._changes and self._changes[0] <= index:
            self._changes = [change for change in self._changes if change > index]

    def change_unapplied(self) -> bool:
        """Whether a configuration is committed and not applied (S4). What was in the log at the start is read for it,
        once, and only if it is asked for before all of that is applied."""
        low = self.applied + 1
        while low <= self._unscanned:
            entries = self._reader.entries(low, self._unscanned + 1, SCAN_BYTES)
            self._changes += [entry.index for entry in entries if entry.kind == CONFIGURATION]
            low = entries[-1].index + 1
        if self._unscanned:
            self._unscanned = 0
            self._changes.sort()
        unapplied = bool(self._changes) and self._changes[0] <= self.commit
        if unapplied:
            probe("configuration committed and not applied")
        return unapplied

    def cut(self, index: int) -> None:
        """The entries up to `index` are not needed any more. What the reader holds of them is the caller's (S6)."""
        if index <= self.start:
            return
        invariant(index <= self.applied, f"cut at {index}, applied is {self.applied}")
        self.start_term = self.term(index)
        self.start = index

    def slice(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low..high, both included: at least one, then as many as fit in `max_bytes`. If the first is committed
        and durable, so are all."""
        after = self._cached_after
        settled = max(after, min(self.commit, self.durable))
        if low <= settled:
            high = min(high, settled)
        if low <= after:
            invariant(low > self.start, f"entry {low} was cut; the log starts at {self.start}")
            return self._reader.entries(low, high + 1, max_bytes)
        entries = self._entries[low - after - 1 : high - after]
        room = max_bytes
        for position, entry in enumerate(entries):
            room -= len(entry.record)
            if room < 0 and position:
                return entries[:position]
        return entries

    def size(self, low: int, high: int) -> int:
        """Bytes of the records low..high, both included, all of which are in memory."""
        after = self._cached_after
        if low <= after:
            raise InvariantViolation(f"entry {low}, uncommitted, is not in memory")
        return sum([len(entry.record) for entry in self._entries[low - after - 1 : high - after]])

    def _evict(self, index: int) -> None:
        """The entries up to `index`, which are committed and durable, may leave the memory."""
        count = index - self._cached_after
        if count > 0:
            self._cached_after, self._cached_term = index, self._entries[count - 1].term
            del self._entries[:count]

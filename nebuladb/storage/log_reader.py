"""The durable log of one group, as the Raft core reads it, and the memory of recent entries that all groups share."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import Corruption, InvariantViolation
from nebuladb.ids import GroupId
from nebuladb.raft.entry import Entry, decode_entry, entry_of
from nebuladb.raft.ready import HardState
from nebuladb.storage.engine import Engine
from nebuladb.storage.log_keys import entry_key, index_of
from nebuladb.storage.log_shape import LogShape

RECENT_BYTES: Final = 64 << 20
"""Default bound of `RecentEntries`. A follower within it of the leader is never served from disk."""
RECENT_OVERHEAD: Final = 300
"""Bytes that a cached entry costs beside its record: key, dictionary."""


class RecentEntries:
    """The entries written last, over all groups, bounded in bytes; the oldest written goes first.

    Invariant: what it holds of a group is a contiguous end of that group's log, or nothing. It holds their records
    alone: the collector would look at each of tens of thousands of tuples, some milliseconds of the loop at once.
    """

    def __init__(self, limit: int = RECENT_BYTES) -> None:
        self.size = 0
        self.limit = limit
        self.records: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        """(group, index) -> record; for `GroupLog` to read."""

    def add(self, group: int, entries: list[Entry]) -> None:
        """Remember `entries`, which were just appended to the group's log; `forget` what they replace before."""
        records = self.records
        for entry in entries:
            records[group, entry.index] = entry.record
            self.size += len(entry.record) + RECENT_OVERHEAD
        while self.size > self.limit:
            _, record = records.popitem(last=False)
            self.size -= len(record) + RECENT_OVERHEAD

    def forget(self, group: int, low: int, high: int) -> None:
        """Drop what is remembered of [low, high); `high` - 1 is the last index of the log, or the log is being cut."""
        for index in range(high - 1, low - 1, -1):
            record = self.records.pop((group, index), None)
            if record is None:
                return  # the invariant: nothing older is there either
            self.size -= len(record) + RECENT_OVERHEAD


class GroupLog:
    """A group's `raft.ready.LogReader`. `LogStore` changes its fields, after the engine took a batch."""

    __slots__ = ("_engine", "_recent", "group", "hard_state", "shape")

    def __init__(self, group: GroupId, shape: LogShape, engine: Engine, recent: RecentEntries) -> None:
        self.group = group
        self.shape = shape
        self.hard_state = HardState(shape.start[1], 0, shape.start[0])
        self._engine = engine
        self._recent = recent

    def start(self) -> tuple[int, int]:
        return self.shape.start

    def last(self) -> tuple[int, int]:
        return self.shape.last

    def term(self, index: int) -> int:
        return self.shape.term(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        shape = self.shape
        if not shape.start[0] < low < high <= shape.last[0] + 1:
            raise InvariantViolation(f"group {self.group}: entries {low} to {high} were asked of the log {shape}")
        found: list[Entry] = []
        size, records, group = 0, self._recent.records, self.group
        for index in range(low, high):
            record = records.get((group, index))
            if record is None:
                break
            size += len(record)
            if size > max_bytes and found:
                break
            found.append(entry_of(record))
        return found or self._stored(low, high, max_bytes)

    def _stored(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        probe("log entries read from disk")
        found: list[Entry] = []
        size = 0
        for key, record in self._engine.scan(entry_key(self.group, low), entry_key(self.group, high)):
            size += len(record)
            if size > max_bytes and found:
                return found
            found.append(check_entry(self.group, low + len(found), key, record))
        if len(found) < high - low:
            raise Corruption(f"group {self.group}: log entry {low + len(found)} is missing")
        return found


def check_entry(group: int, index: int, key: bytes, record: bytes) -> Entry:
    """The entry of one row. Raises `Corruption` if it isn't that at `index`, or its CRC is wrong (S35)."""
    if (found := index_of(key)) != index:
        raise Corruption(f"group {group}: log entry {index} is missing; the next one is {found}")
    try:
        entry = decode_entry(record)
    except Corruption as error:
        raise Corruption(f"group {group}, at index {index}: {error.message}") from error
    if entry.index != index:
        raise Corruption(f"group {group}: the row of log entry {index} holds entry {entry.index}")
    return entry

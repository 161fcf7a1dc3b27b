"""What one turn of the node writes to the log, for all its groups together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.entry import Entry
from nebuladb.raft.ready import HardState

ROW_OVERHEAD: Final = 40
"""Key, header and value of a small row, about; for `LogBatch.size`."""


@dataclass(slots=True)
class GroupWrite:
    """One `Ready` of one group. `entries` replace whatever the log holds from `entries[0].index` on, tail included."""

    group: GroupId
    hard_state: HardState | None = None
    entries: list[Entry] = field(default_factory=list)


class LogBatch:
    """Written atomically, in this order: dropped, created, writes (in their order), cuts, registry.

    Fill it through the methods, which keep `size` true.
    """

    __slots__ = ("created", "cuts", "dropped", "id", "registry", "size", "writes")

    def __init__(self, number: BatchId) -> None:
        self.id = number
        """One more than the batch before."""
        self.writes: list[GroupWrite] = []
        self.cuts: list[tuple[GroupId, int, int]] = []
        """(group, index, term): the log starts behind that entry now."""
        self.registry: list[tuple[GroupId, bytes | None]] = []
        self.created: list[tuple[GroupId, int, int]] = []
        """(group, index, term) of the initial state; the group may not exist."""
        self.dropped: list[GroupId] = []
        """All but the registry row, which is the tombstone (S16), goes."""
        self.size = 0
        """Bytes, about (S31)."""

    def __bool__(self) -> bool:
        return bool(self.writes or self.cuts or self.registry or self.created or self.dropped)

    def write(self, write: GroupWrite) -> None:
        """Append a Ready."""
        self.writes.append(write)
        size = ROW_OVERHEAD
        for entry in write.entries:
            size += ROW_OVERHEAD + len(entry.record)
        self.size += size

    def cut(self, group: GroupId, index: int, term: int) -> None:
        """Start the log behind (`index`, `term`): a compaction, or a snapshot that took the log's place."""
        self.cuts.append((group, index, term))
        self.size += 3 * ROW_OVERHEAD

    def register(self, group: GroupId, row: bytes | None) -> None:
        """Set or remove the registry row."""
        self.registry.append((group, row))
        self.size += ROW_OVERHEAD + len(row or b"")

    def create(self, group: GroupId, index: int, term: int) -> None:
        """Begin an empty log behind (`index`, `term`)."""
        self.created.append((group, index, term))
        self.size += ROW_OVERHEAD

    def drop(self, group: GroupId) -> None:
        """Destroy the group's log and hard state, and forget what this batch was to write to them."""
        self.writes = [write for write in self.writes if write.group != group]
        self.cuts = [cut for cut in self.cuts if cut[0] != group]
        created = [start for start in self.created if start[0] != group]
        # What was created in this very batch has nothing to drop.
        if len(created) == len(self.created):
            self.dropped.append(group)
        self.created = created
        self.size += 4 * ROW_OVERHEAD

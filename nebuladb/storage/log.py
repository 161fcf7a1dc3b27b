"""The Raft log, hard states and registry of all groups of a node, in one engine.

The loop calls `write`, which costs microseconds and makes nothing durable; that is done beside the loop
(`nebuladb.node.flusher`). The first row of every batch is a stamp: its id, and the last id known to be flushed. By it
``wal`` can tell, of a damaged WAL, what was promised and is lost from what nobody was ever told (S34).
"""

from __future__ import annotations

from nebuladb.errors import Corruption, InvariantViolation, invariant
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.ready import HardState
from nebuladb.storage.engine import Batch, Engine
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.log_keys import (
    HARD_STATE_ROW,
    REGISTRY_ROW,
    STAMP_KEY,
    START_ROW,
    decode_hard_state,
    decode_stamp,
    decode_start,
    encode_hard_state,
    encode_pair,
    encode_stamp,
    entries_end,
    entry_key,
    group_key,
    group_of,
    rows_of,
)
from nebuladb.storage.log_reader import RECENT_BYTES, GroupLog, RecentEntries, check_entry
from nebuladb.storage.log_shape import LogShape


class LogStore:
    """All methods but `sync` are called from one thread.

    Raises `Corruption` where stored bytes are not what was written, and the engine's errors as they are; after any but
    `WriteStalled` the node stops (S33).
    """

    def __init__(self, engine: Engine, recent_bytes: int = RECENT_BYTES) -> None:
        """`recent_bytes`: the newest entries of all groups that stay in memory.

        Read everything and check it: each log contiguous, each entry's CRC right (S34, S35), terms ascending, and
        nothing missing that the hard state says was there."""
        self._engine = engine
        self.sync_file = engine.sync_file
        """A file of which an `fdatasync`, begun now, is as good as `sync`; None: there is none now. See `Engine`."""
        self.recent = RecentEntries(recent_bytes)
        self._groups: dict[GroupId, GroupLog] = {}
        self._registry: dict[GroupId, bytes] = {}
        self.last_batch: BatchId = decode_stamp(engine.get(STAMP_KEY)).batch
        """Id of the batch written last, 0 before the first."""
        self._load()

    def groups(self) -> list[GroupId]:
        """The groups that have a log, ascending."""
        return sorted(self._groups)

    def hard_state(self, group: GroupId) -> HardState:
        """As written last; before that, what the log's start says: its term, no vote, committed up to there."""
        return self.reader(group).hard_state

    def reader(self, group: GroupId) -> GroupLog:
        """The group's log; the same object until the group is dropped."""
        invariant(group in self._groups, f"group {group} has no log here")
        return self._groups[group]

    def registry(self) -> dict[GroupId, bytes]:
        """A copy of the registry's rows, ascending by group; tombstones outlive their logs."""
        return dict(sorted(self._registry.items()))

    def write(self, batch: LogBatch, flushed: BatchId) -> None:
        """Write `batch` as one batch of the engine. `flushed`: the last batch whose `sync` has returned.

        Raises `WriteStalled` with nothing changed: write the same batch again later.
        """
        if batch.id != self.last_batch + 1 or flushed > self.last_batch:
            raise InvariantViolation(f"batch {batch.id}, with {flushed} flushed, after {self.last_batch}")
        rows = Batch()
        # First: the WAL scan looks for it there.
        rows.put(STAMP_KEY, encode_stamp(batch.id, flushed, self._engine.identity))
        # The logs' shapes after it. Nothing of ours changes before the engine took it, so that it may refuse.
        shapes: dict[GroupId, LogShape] = {}
        if batch.dropped or batch.created:
            self._begin(batch, rows, shapes)
        for write in batch.writes:
            group, entries, state = write.group, write.entries, write.hard_state
            shape = shapes.get(group) or self._shape(batch, group)
            if entries:
                shapes[group] = shape.appended(entries)
                low, high = entries[0].index, shape.last[0] + 1
                if low < high:  # a kept tail would come back as entries once the log grew up to it
                    rows.delete_range(entry_key(group, low), entry_key(group, high))
                for entry in entries:
                    rows.put(entry_key(group, entry.index), entry.record)
            if state is not None:
                rows.put(group_key(HARD_STATE_ROW, group), encode_hard_state(*state))
        if batch.cuts or batch.registry:
            self._end(batch, rows, shapes)
        self._engine.write(rows)
        self.last_batch = batch.id
        self._accept(batch, shapes)

    def sync(self) -> None:
        """Make every batch durable whose `write` returned before this call. Blocks; for a thread."""
        self._engine.sync()

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _begin(self, batch: LogBatch, rows: Batch, shapes: dict[GroupId, LogShape]) -> None:
        """What a batch does before its writes: groups go and come."""
        for group in batch.dropped:
            rows.delete_range(entry_key(group, 0), entries_end(group))
            rows.delete(group_key(START_ROW, group))
            rows.delete(group_key(HARD_STATE_ROW, group))
        for group, index, term in batch.created:
            invariant(group not in self._groups or group in batch.dropped, f"group {group} has a log already")
            shapes[group] = LogShape((index, term))
            rows.put(group_key(START_ROW, group), encode_pair(index, term))

    def _end(self, batch: LogBatch, rows: Batch, shapes: dict[GroupId, LogShape]) -> None:
        """What it does behind them: cuts, and the registry."""
        for group, index, term in batch.cuts:
            shape = shapes.get(group) or self._shape(batch, group)
            shapes[group], high = shape.cut(index, term)
            # By range: 300,000 single tombstones cost one seek 169 ms.
            rows.delete_range(entry_key(group, shape.start[0] + 1), entry_key(group, high))
            rows.put(group_key(START_ROW, group), encode_pair(index, term))
        for group, row in batch.registry:
            key = group_key(REGISTRY_ROW, group)
            rows.delete(key) if row is None else rows.put(key, row)

    def _shape(self, batch: LogBatch, group: GroupId) -> LogShape:
        """That of a log which `batch` finds, as it finds it."""
        if group not in self._groups or group in batch.dropped:
            raise InvariantViolation(f"group {group} has no log here")
        return self._groups[group].shape

    def _accept(self, batch: LogBatch, shapes: dict[GroupId, LogShape]) -> None:
        """The engine has taken `batch`: so do the books."""
        groups, recent = self._groups, self.recent
        for group in batch.dropped:
            if (log := groups.pop(group, None)) is not None:
                recent.forget(group, log.shape.start[0] + 1, log.shape.last[0] + 1)
        for group, index, term in batch.created:
            groups[group] = GroupLog(group, LogShape((index, term)), self._engine, recent)
        ends: dict[GroupId, int] = {}
        for write in batch.writes:
            group, entries = write.group, write.entries
            log = groups[group]
            if entries:
                first, end = entries[0].index, ends.get(group, log.shape.last[0])
                if first <= end:
                    recent.forget(group, first, end + 1)
                recent.add(group, entries)
                ends[group] = entries[-1].index
            if write.hard_state is not None:
                log.hard_state = write.hard_state
        for group, index, _ in batch.cuts:
            shape, end = shapes[group], ends.get(group, groups[group].shape.last[0])
            recent.forget(group, 0, (end if shape.last == shape.start else min(index, end)) + 1)
        for group, shape in shapes.items():
            groups[group].shape = shape
        for group, row in batch.registry:
            if row is None:
                self._registry.pop(group, None)
            else:
                self._registry[group] = row

    def _load(self) -> None:
        engine = self._engine
        for key, value in engine.scan(*rows_of(START_ROW)):
            group = group_of(key)
            self._groups[group] = GroupLog(group, LogShape(decode_start(value)), engine, self.recent)
        for key, value in engine.scan(*rows_of(REGISTRY_ROW)):
            self._registry[group_of(key)] = value
        for key, value in engine.scan(*rows_of(HARD_STATE_ROW)):
            group = group_of(key)
            if group not in self._groups:
                raise Corruption(f"group {group} has a hard state but no log start")
            self._groups[group].hard_state = decode_hard_state(value)
        for group in sorted(self._groups):
            self._load_group(self._groups[group])

    def _load_group(self, log: GroupLog) -> None:
        group, shape, state = log.group, log.shape, log.hard_state
        # From behind the start, never from 0: what was cut lies there as tombstones.
        for key, record in self._engine.scan(entry_key(group, shape.start[0] + 1), entries_end(group)):
            entry = check_entry(group, shape.last[0] + 1, key, record)
            if entry.term < shape.last[1]:
                raise Corruption(f"group {group}: log entry {entry.index} has an older term than the one before")
            shape = shape.appended([entry])
        log.shape = shape
        if state.term < shape.last[1] or state.commit > shape.last[0]:
            raise Corruption(f"group {group}: the log ends at {shape.last}, yet its hard state is {state}")

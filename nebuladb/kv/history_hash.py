"""The hash of a shard's keys and their history up to one revision, the same on every replica that has it (etcd 55).

``hashing`` compares whole states at one log index; this hashes what clients can read: each key in order, and each of
its versions, from the one that is read at the floor to the one at the revision. Physical deletion isn't seen, nor are
slices, leases or sessions. Two nodes with equal revision and floor have the same hash, or one is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from struct import Struct
from typing import Final

from nebuladb.errors import Corruption
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.rows import CURRENT, KEY_AT, Keys, Record, decode_record
from nebuladb.kv.source import SnapshotSource
from nebuladb.kv.state import State
from nebuladb.kv.txn import check_revision
from nebuladb.kv.view import load
from nebuladb.storage.engine import Engine

HEAD: Final = Struct(">I3QqQ")
"""Length of the key, create and mod revision, version, lease, length of the value."""


class HistoryHash:
    """One hash in the making, over an engine snapshot. Make and close it in the engine's thread; `step` may run in
    another, one call at a time, also while it is closed. Close it soon: it keeps old tables on the disk."""

    def __init__(self, engine: Engine, group: GroupId, generation: Generation, revision: int = 0) -> None:
        """`revision` 0 or less: the newest. Raises `Compacted`, `FutureRevision` or `Corruption`."""
        keys = Keys(group, generation)
        span = (keys.current, keys.current_end)
        self._view = engine.snapshot([span])
        try:
            data = self._view.get(keys.state)
            if data is None:
                raise Corruption(f"group {group} has no state under generation {generation}")
            state = State.decode(data)
            self.floor = state.floor
            """The compact revision as of the snapshot; 0: nothing was ever compacted."""
            self.newest = state.revision
            """The newest revision as of the snapshot."""
            self.revision = revision if revision > 0 else state.revision
            check_revision(self.revision, self.floor, self.newest)
        except BaseException:
            self._view.close()
            raise
        self._source = SnapshotSource(self._view, keys)
        self._rows = self._view.scan(*span)
        self._hash = blake2b(digest_size=4)

    def step(self, budget: int) -> int | None:
        """Look at about `budget` rows; the hash, 32 bits, when it is done. Raises `Corruption` or `StoreError`."""
        left = budget
        for row, data in self._rows:
            if row[KEY_AT - 1 : KEY_AT] != CURRENT:
                raise Corruption("a row lies among others of another kind")
            key = row[KEY_AT:]
            left -= 1
            for record in self._history(key, decode_record(data)):
                left -= 1
                head = HEAD.pack(
                    len(key), record.create, record.main, record.version, record.lease, len(record.value)
                )  # fmt: skip
                self._hash.update(head)
                self._hash.update(key)
                self._hash.update(record.value)
            if left <= 0:
                return None
        return int.from_bytes(self._hash.digest())

    def close(self) -> None:
        """Let go of the engine, even while `step` runs in a thread, which then may raise `StoreError`. Idempotent."""
        # The view alone: an iterator that a thread is in can't be closed, and raises.
        self._view.close()

    def _history(self, key: bytes, newest: Record) -> Iterator[Record]:
        """The key's records at or below the revision, back to the one that is read at the floor. A tombstone at or
        below the floor counts as gone: it may be."""
        record: Record | None = newest
        while record is not None and record.main > self.revision:
            if record.anchor_main > self.revision:
                record = load(self._source, key, record.anchor_main, record.anchor_sub)
            else:
                record = self._past(key, record)
        while record is not None and (record.version or record.main > self.floor):
            yield record
            record = self._past(key, record) if record.main > self.floor else None

    def _past(self, key: bytes, record: Record) -> Record | None:
        if not record.past_main or (record.past_deleted and record.past_main <= self.floor):
            return None
        return load(self._source, key, record.past_main, record.past_sub)

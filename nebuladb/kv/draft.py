"""Rows written but not yet in the engine, and a view of the state with them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from typing import Final

from nebuladb.errors import KeyNotFound, LeaseNotFound
from nebuladb.kv.change import Change, LeaseChange
from nebuladb.kv.dead import Clearing
from nebuladb.kv.deletion import delete_run
from nebuladb.kv.limits import HISTORY_STRIDE
from nebuladb.kv.rows import (
    AFTER_TOMBSTONE,
    ATTACHED,
    FORMAT,
    POSITION,
    RECORD_HEAD,
    ROW_HEAD,
    Record,
    encode_record,
    is_lease_id,
)
from nebuladb.kv.source import Source, close
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.engine import DELETE, PUT, Batch

# Bound once: `put` runs for every write there is. A named tuple made by `tuple.__new__` skips a Python-level call.
_new_record: Final = partial(tuple.__new__, Record)
_new_change: Final = partial(tuple.__new__, Change)
_record_head: Final = RECORD_HEAD.pack
_row_head: Final = ROW_HEAD.pack
_position: Final = POSITION.pack


class Draft:
    """What was written and isn't in the engine yet. Each apply call has one, so that a later command sees what an
    earlier one wrote; each transaction has one on top, which is merged, or dropped if it fails.

    Within it a row is written once: the last write wins. `added` and `grown` are what it changed of the number of keys
    and of their bytes.
    """

    __slots__ = (
        "_current", "_fresh", "_record", "_sorted", "_source", "added", "buried", "events", "floor", "forgotten",
        "grown", "held", "keys", "leases", "records", "rows", "size",
    )  # fmt: skip

    def __init__(self, source: Source, floor: int) -> None:
        self._source = source
        self.keys = source.keys
        self._current = source.keys.current
        self._record = source.keys.record
        self.floor = floor
        self.rows: dict[bytes, bytes | None] = {}
        self.records: dict[bytes, Record] = {}
        self.events: list[Change] = []
        self.leases: list[LeaseChange] = []
        self.added = 0
        self.grown = 0
        self.forgotten = 0
        """Revision of the newest tombstone that is removed, or that a put took no notice of. The new record, if there
        is one, doesn't lead back past it, so a read at an earlier revision doesn't find the key any more."""
        self.size = 0
        """Bytes written, about: for the slice's bound."""
        self.held = 0
        """Bytes of the values that were superseded, which `events` keep, and of the answers of sessions that were read:
        likewise."""
        self._sorted: list[bytes] = []
        self._fresh = 0
        self.buried: list[list[bytes]] = []
        """Runs of C rows that `batch` deletes, of keys that are gone."""

    # --- reading

    def get(self, row: bytes) -> bytes | None:
        """The value of a row."""
        rows = self.rows
        return rows[row] if row in rows else self._source.get(row)

    def newest(self, key: bytes) -> Record | None:
        """The newest record of a user's key."""
        record = self.records.get(key)
        return record if record is not None else self._source.newest(key)

    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows in [low, high) in order, of both; nothing may be written until it ends."""
        mine = self._between(low, high)
        if not mine:
            yield from self._source.scan(low, high)
            return
        below = self._source.scan(low, high)
        rows = self.rows
        position, count = 0, len(mine)
        try:
            for row, data in below:
                while position < count and mine[position] < row:
                    own = rows[mine[position]]
                    if own is not None:
                        yield mine[position], own
                    position += 1
                if position < count and mine[position] == row:
                    own = rows[row]
                    position += 1
                    if own is not None:
                        yield row, own
                else:
                    yield row, data
        finally:
            close(below)
        for row in mine[position:]:
            own = rows[row]
            if own is not None:
                yield row, own

    def _between(self, low: bytes, high: bytes) -> list[bytes]:
        """Rows of mine in [low, high). A dict keeps its order of insertion, so only the tail is new since last time;
        sorting a sorted list with a short tail is nearly linear."""
        if self._fresh != len(self.rows):
            fresh = list(self.rows)[self._fresh :]
            self._sorted += fresh
            self._sorted.sort()
            self._fresh = len(self.rows)
        ordered = self._sorted
        return ordered[bisect_left(ordered, low) : bisect_left(ordered, high)]

    # --- writing

    def write(self, row: bytes, data: bytes) -> None:
        """Set a row."""
        self.rows[row] = data
        self.size += len(row) + len(data)

    def remove(self, row: bytes) -> None:
        """Delete a row."""
        self.rows[row] = None
        self.size += len(row)

    def put(self, previous: Record | None, main: int, sub: int, key: bytes, value: bytes, lease: int) -> Record | None:
        """Give `key`, whose newest record is `previous`, a value at (main, sub); returns the record that it had, if it
        existed.

        The caller has seen that the lease exists. Two rows, key new or old (speed.md 2), built inline: this is the hot
        path of the whole database.
        """
        if previous is not None and previous.version == 0 and previous.main < self.floor:
            self.forgotten = max(self.forgotten, previous.main)
            previous = None  # a replica may have deleted that tombstone already, so no replica may see it (S28)
        flags = anchor_main = anchor_sub = stride = past_main = past_sub = 0
        create, version = main, 1
        if previous is None:
            past_deleted = False
        else:
            past_main, past_sub = previous.main, previous.sub
            anchor_main, anchor_sub, stride = previous.anchor_main, previous.anchor_sub, previous.stride + 1
            if stride == HISTORY_STRIDE:
                anchor_main, anchor_sub, stride = past_main, past_sub, 0
            past_deleted = previous.version == 0
            if past_deleted:
                flags = AFTER_TOMBSTONE
            else:
                create, version = previous.create, previous.version + 1
        data = (
            _record_head(
                FORMAT, flags, main, sub, create, version, lease, past_main, past_sub, anchor_main, anchor_sub, stride
            )
            + value
        )
        record = _new_record(
            (
                main, sub, create, version, lease, past_main, past_sub, past_deleted, anchor_main, anchor_sub, stride,
                value,
            )
        )  # fmt: skip
        rows = self.rows
        rows[self._current + key] = data
        rows[self._record + _position(main, sub)] = b"".join((_row_head(FORMAT, len(key)), key, data))
        self.size += 2 * (len(key) + len(data))
        self.records[key] = record
        if version == 1:
            previous = None
            self.added += 1
            self.grown += len(key) + len(value)
            if lease:
                self.write(self.attachment(lease, key), ATTACHED)
        else:
            superseded = len(previous.value)  # type: ignore[union-attr]
            self.grown += len(value) - superseded
            self.held += superseded
            if previous.lease != lease:  # type: ignore[union-attr]
                self._attach(key, previous.lease, lease)  # type: ignore[union-attr]
        self.events.append(_new_change((key, record, previous)))
        return previous

    def delete(self, main: int, sub: int, key: bytes, previous: Record) -> None:
        """Delete `key`, whose record is `previous`, a live one, at (main, sub)."""
        stride = previous.stride + 1
        anchor = previous.anchor_main, previous.anchor_sub
        if stride == HISTORY_STRIDE:
            anchor, stride = (previous.main, previous.sub), 0
        record = Record(main, sub, 0, 0, 0, previous.main, previous.sub, False, *anchor, stride, b"")  # noqa: FBT003
        data = encode_record(record)
        self.rows[self.keys.current + key] = data
        self.rows[self.keys.record_key(main, sub)] = ROW_HEAD.pack(FORMAT, len(key)) + key + data
        self.size += 2 * (len(key) + len(data))
        self.records[key] = record
        self.added -= 1
        self.grown -= len(key) + len(previous.value)
        self.held += len(previous.value)
        if previous.lease:
            self.remove(self.attachment(previous.lease, key))
        self.events.append(Change(key, record, previous))

    def _attach(self, key: bytes, old: int, new: int) -> None:
        if old:
            self.remove(self.attachment(old, key))
        if new:
            self.write(self.attachment(new, key), ATTACHED)

    def attachment(self, lease: int, key: bytes) -> bytes:
        """The K row of a key."""
        return self.keys.attached(lease)[0] + key

    def require_lease(self, lease: int) -> None:
        """Raises `LeaseNotFound` unless there is such a lease; 0 is none and always allowed."""
        if lease and not (is_lease_id(lease) and self.get(self.keys.lease_key(lease)) is not None):
            raise LeaseNotFound(f"lease {lease} does not exist; grant it first")

    def kept(self, request: kv_pb2.PutRequest | kv_pb2.TxnPut) -> tuple[bytes, int]:
        """Value and lease that a put gives, which keeps one of them, or both, as the key has them (etcd 11).

        Raises `KeyNotFound`.
        """
        record = self.newest(request.key)
        if record is None or not record.version:
            raise KeyNotFound("the put keeps what the key has, and the key does not exist")
        return (
            record.value if request.ignore_value else request.value,
            record.lease if request.ignore_lease else request.lease,
        )

    # --- the end of it

    def bury(self, dead: Clearing) -> None:
        """Remove these, too, and be read no more. What of them was written here stays for now."""
        self.buried = dead.runs
        self.forgotten = max(self.forgotten, dead.newest)

    def merge(self, other: Draft) -> None:
        """Take over what `other`, a draft over this one, wrote."""
        self.rows.update(other.rows)
        self.records.update(other.records)
        self.events += other.events
        self.leases += other.leases
        self.added += other.added
        self.grown += other.grown
        self.forgotten = max(self.forgotten, other.forgotten)
        self.size += other.size
        self.held += other.held

    def batch(self) -> Batch:
        """Everything as one engine batch."""
        batch = Batch()
        for run in self.buried:
            delete_run(batch, run)
        batch.operations += [
            (DELETE, row, b"") if data is None else (PUT, row, data) for row, data in self.rows.items()
        ]
        batch.size += self.size
        return batch

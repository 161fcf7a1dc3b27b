"""Reading at a revision: C if it is old enough, else back along R."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from nebuladb.env import probe
from nebuladb.errors import Corruption
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import key_value
from nebuladb.kv.dead import Dead
from nebuladb.kv.limits import ROW_OVERHEAD
from nebuladb.kv.loans import Misses
from nebuladb.kv.rows import (
    FORMAT,
    KEY_AT,
    RECORD_FLAGS,
    RECORD_HEAD_SIZE,
    RECORD_MAIN,
    ROW_HEAD_SIZE,
    TOMBSTONE,
    U64,
    Record,
    decode_record,
    decode_row,
)
from nebuladb.kv.source import Source, close
from nebuladb.kv.trail import Trail

MISSES_AT_ONCE: Final = 1_024
MISSES_BYTES: Final = 8 << 20
"""Rows of the history that a page asks for at a time, where they aren't in memory; and bytes, as far as the newest
records of their keys tell."""
STRETCH_BYTES: Final = 4 << 20
"""Bytes that one turn of a long read looks at, shown or not: some 5 ms."""
UNBOUNDED: Final = 1 << 62
SMALL_BYTES: Final = 1 << 10
"""A row up to here isn't counted by its bytes: it is counted as a row, and those are bounded too."""


class Page(NamedTuple):
    """A bounded stretch of a range."""

    kvs: tuple[KeyValue, ...]
    counted: int
    """Keys that exist in the stretch."""
    cursor: bytes
    """Where the next stretch begins; empty = the range is done."""
    size: int
    """Bytes of `kvs`, with an overhead a key."""
    examined: int
    """Rows that were looked at, those of the history included."""
    read: int
    """Bytes of those above `SMALL_BYTES`."""
    passed: int
    """Of `examined`, those of deleted keys before the first key that exists."""


def load(source: Source, key: bytes, main: int, sub: int) -> Record:
    """The record that R holds at (main, sub), which must be of `key`. Raises `Corruption`."""
    return _decoded(_row(source, main, sub), key, main, sub)


def _row(source: Source, main: int, sub: int) -> bytes:
    data = source.get(source.keys.record_key(main, sub))
    if data is None:
        raise Corruption(f"history has no row {main}.{sub}")
    return data


def _decoded(data: bytes, key: bytes, main: int, sub: int) -> Record:
    found, record = decode_row(data)
    if found != key or record.main != main or record.sub != sub:
        raise Corruption(f"row {main}.{sub} of the history is of another key or revision")
    return record


def at(
    source: Source,
    key: bytes,
    record: Record | None,
    revision: int,
    most: int = UNBOUNDED,
    trail: Trail | None = None,
) -> tuple[Record | None, int, int]:
    """What `record`'s key was at `revision`, a live record or None; then how many look-ups that took, and how many
    bytes they read, the same on every replica. `revision` isn't below the floor.

    Beyond `most` bytes, or one look-up, it ends with a record above `revision`. It goes on where `trail` is, and leaves
    that where it ends, by `Misses` as well.
    """
    steps = read = 0
    if trail is not None:
        record = trail.reached(key, revision) or record
    try:
        while record is not None and record.main > revision and read <= most:
            past = _past(record, revision)
            if past is None:
                return None, steps, read
            data = _row(source, *past)
            head = ROW_HEAD_SIZE + len(key) + RECORD_HEAD_SIZE
            # The value of one that is passed over isn't copied: a read that lacks a row begins anew, a thousand times.
            record = _decoded(data[:head] if past[0] > revision else data, key, *past)
            steps += 1
            read += len(data) - head
    finally:
        if trail is not None:
            trail.leave(key, revision, record, steps, read)
    return (record if record is not None and (record.version or record.main > revision) else None), steps, read


Look = Callable[[Source, bytes, Record | None, int, int, Trail | None], tuple[Record | None, int, int]]
"""What does as `at`."""


def _past(record: Record, revision: int) -> tuple[int, int] | None:
    """The next record to look at from one above `revision`; None: the key didn't exist then."""
    if record.anchor_main > revision:
        return record.anchor_main, record.anchor_sub
    if record.past_main == 0 or (record.past_deleted and record.past_main <= revision):
        # A tombstone at or below the revision may be gone from R already, so it is never looked up.
        return None
    return record.past_main, record.past_sub


def as_of(source: Source, key: bytes, revision: int, trail: Trail | None) -> KeyValue | None:
    """A key as it was at `revision`, which isn't below the floor. Raises `Corruption`, or `Misses`: after these it goes
    on where `trail` is, and where it has looked at `STRETCH_BYTES` it asks for the next row also if that is in memory.
    """
    if trail is None:
        record, *_ = at(source, key, source.newest(key), revision)
        return None if record is None else key_value(key, record)
    try:
        newest = trail.reached(key, revision) or source.newest(key)
        record, *_ = at(source, key, newest, revision, STRETCH_BYTES, trail)
    except Misses as misses:
        raise Misses(misses.rows, alone=True) from None
    if record is None:
        return None
    if record.main > revision and (position := _past(record, revision)) is not None:
        probe("look into history rests")
        raise Misses([source.keys.record_key(*position)], alone=True)
    return key_value(key, record) if record.main <= revision else None


def page(
    source: Source, span: tuple[bytes, bytes], revision: int, *, limit: int, max_bytes: int, max_rows: int,
    keys_only: bool = False, keep: Callable[[Record], bool] | None = None, floor: int = 0, max_read: int = UNBOUNDED,
    dead: Dead | None = None, trail: Trail | None = None, look: Look = at,
) -> Page:  # fmt: skip
    """The range as it was at `revision`, as far as `limit` keys, about `max_bytes` (at least one key), and `max_rows`
    rows or `max_read` bytes looked at go, and one row more. With `limit` 0 keys are counted and none returned; what
    `keep` refuses is counted, too. A page that ends amid a key's history has its cursor at that key: the next one goes
    on with the same `trail`. `look` is `at`, or does as that.

    What another replica may have deleted already, tombstones below `floor`, counts for nothing: `examined` and `read`
    are the same on all. `dead` is told of those, and may raise."""
    dead = dead or Dead()
    if not limit:
        return _count(source, span, revision, max_rows, dead, floor, max_read, trail, look)
    newest, oldest = U64.pack(revision), U64.pack(floor)
    kvs: list[KeyValue] = []
    missing: list[bytes] = []
    counted = size = examined = read = missed = passed = 0
    cursor, joined = b"", False
    rows = source.scan(*span)
    for row, data in rows:
        if data[RECORD_FLAGS] & TOMBSTONE and data[RECORD_MAIN] < oldest:
            dead.passes(row, data, joined=joined)
            joined = True
            continue  # another replica may have deleted it already
        joined = False
        if examined >= max_rows or len(kvs) == limit or size >= max_bytes or read >= max_read:
            cursor = row[KEY_AT:]
            close(rows)
            break
        examined += 1
        read += looked if (looked := len(row) + len(data)) > SMALL_BYTES else 0
        if data[RECORD_FLAGS] & TOMBSTONE and data[RECORD_MAIN] <= newest and data[0] == FORMAT:
            passed += not counted
            continue
        key = row[KEY_AT:]
        record = decode_record(data)
        try:
            visible: Record | None = record
            steps = past = 0
            if record.main > revision:
                visible, steps, past = look(source, key, record, revision, max(max_read - read, 0), trail)
        except Misses as misses:
            missing += misses.rows
            missed += len(data)
            if len(kvs) + len(missing) >= min(limit, MISSES_AT_ONCE) or missed >= MISSES_BYTES:
                close(rows)
                break
            continue
        examined += steps
        read += past
        if visible is not None and visible.main > revision:
            cursor = key
            close(rows)
            break
        if visible is None:
            passed += not counted
            continue
        counted += 1
        if keep is None or keep(visible):
            kv = key_value(key, visible)
            if keys_only:
                kv = kv._replace(value=b"")
            kvs.append(kv)
            size += len(key) + len(kv.value) + ROW_OVERHEAD
    if missing:
        raise Misses(missing)  # all at once: one by one, each would be met only when the ones before it are here
    return Page(tuple(kvs), counted, cursor, size, examined, read, passed)


def _count(
    source: Source, span: tuple[bytes, bytes], revision: int, max_rows: int, dead: Dead, floor: int, max_read: int,
    trail: Trail | None, look: Look,
) -> Page:  # fmt: skip
    """`page` with limit 0: of most rows two fields are all that it takes to tell."""
    missing: list[bytes] = []
    counted = examined = read = missed = 0
    cursor, newest, oldest, joined = b"", U64.pack(revision), U64.pack(floor), False
    rows = source.scan(*span)
    for row, data in rows:
        if data[RECORD_FLAGS] & TOMBSTONE and data[RECORD_MAIN] < oldest:
            dead.passes(row, data, joined=joined)
            joined = True
            continue
        joined = False
        if examined >= max_rows or read >= max_read:
            cursor = row[KEY_AT:]
            close(rows)
            break
        examined += 1
        if (looked := len(row) + len(data)) > SMALL_BYTES:
            read += looked
        if data[RECORD_MAIN] <= newest and data[0] == FORMAT:
            counted += not data[RECORD_FLAGS] & TOMBSTONE
        else:
            try:
                record, left = decode_record(data), max(max_read - read, 0)
                visible, steps, past = look(source, row[KEY_AT:], record, revision, left, trail)
            except Misses as misses:
                missing += misses.rows
                missed += len(data)
                if len(missing) >= MISSES_AT_ONCE or missed >= MISSES_BYTES:
                    close(rows)
                    break
                continue
            examined += steps
            read += past
            if visible is not None and visible.main > revision:
                cursor = row[KEY_AT:]
                close(rows)
                break
            counted += visible is not None
    if missing:
        raise Misses(missing)
    return Page((), counted, cursor, 0, examined, read, 0 if counted else examined)

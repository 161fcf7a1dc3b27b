"""Reading at a revision: C if it is old enough, else back along R."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

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
    RECORD_MAIN,
    TOMBSTONE,
    U64,
    Record,
    decode_record,
    decode_row,
)
from nebuladb.kv.source import Source, close

MISSES_AT_ONCE: Final = 1_024
MISSES_BYTES: Final = 8 << 20
"""Rows of the history that a page asks for at a time, where they aren't in memory; and bytes, as far as the newest
records of their keys tell."""
STRETCH_BYTES: Final = 4 << 20
"""Bytes that one turn of a long read looks at, shown or not: some 5 ms."""
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


def load(source: Source, key: bytes, main: int, sub: int) -> Record:
    """The record that R holds at (main, sub), which must be of `key`. Raises `Corruption`."""
    data = source.get(source.keys.record_key(main, sub))
    if data is None:
        raise Corruption(f"history has no row {main}.{sub}")
    found, record = decode_row(data)
    if found != key or record.main != main or record.sub != sub:
        raise Corruption(f"row {main}.{sub} of the history is of another key or revision")
    return record


def at(source: Source, key: bytes, record: Record | None, revision: int) -> tuple[Record | None, int, int]:
    """What `record`'s key was at `revision`, which isn't below the floor, a live record or None; and the look-ups that
    it took and the bytes that those read, which are the same on every replica."""
    steps = read = 0
    while record is not None and record.main > revision:
        if record.anchor_main > revision:
            record = load(source, key, record.anchor_main, record.anchor_sub)
        elif record.past_main == 0 or (record.past_deleted and record.past_main <= revision):
            # A tombstone at or below the revision may be gone from R already, so it is never looked up.
            return None, steps, read
        else:
            record = load(source, key, record.past_main, record.past_sub)
        steps += 1
        read += len(record.value)
    return (record if record is not None and record.version else None), steps, read


def page(
    source: Source,
    span: tuple[bytes, bytes],
    revision: int,
    *,
    limit: int,
    max_bytes: int,
    max_rows: int,
    keys_only: bool = False,
    keep: Callable[[Record], bool] | None = None,
    floor: int = 0,
    max_read: int = 1 << 62,
    dead: Dead | None = None,
) -> Page:
    """The range as it was at `revision`, as far as `limit` keys, about `max_bytes` (at least one key), and `max_rows`
    rows or `max_read` bytes looked at, and one key's history more, go. With `limit` 0 keys are counted and none
    returned; what `keep` refuses is counted, too.

    What another replica may have deleted already, tombstones below `floor`, counts for nothing: `examined` and `read`
    are the same on all. `dead` is told of those, and may raise."""
    dead = dead or Dead()
    if not limit:
        return _count(source, span, revision, max_rows, dead, floor, max_read)
    oldest = U64.pack(floor)
    kvs: list[KeyValue] = []
    missing: list[bytes] = []
    counted = size = examined = read = missed = 0
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
        if (looked := len(row) + len(data)) > SMALL_BYTES:
            read += looked
        key = row[KEY_AT:]
        record = decode_record(data)
        try:
            visible, steps, past = (record, 0, 0) if record.main <= revision else at(source, key, record, revision)
        except Misses as misses:
            missing += misses.rows
            missed += len(data)
            if len(kvs) + len(missing) >= min(limit, MISSES_AT_ONCE) or missed >= MISSES_BYTES:
                close(rows)
                break
            continue
        examined += steps
        read += past
        if visible is None or visible.version == 0:
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
    return Page(tuple(kvs), counted, cursor, size, examined, read)


def _count(
    source: Source, span: tuple[bytes, bytes], revision: int, max_rows: int, dead: Dead, floor: int, max_read: int
) -> Page:
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
                visible, steps, past = at(source, row[KEY_AT:], decode_record(data), revision)
            except Misses as misses:
                missing += misses.rows
                missed += len(data)
                if len(missing) >= MISSES_AT_ONCE or missed >= MISSES_BYTES:
                    close(rows)
                    break
                continue
            examined += steps
            counted += visible is not None
            read += past
    if missing:
        raise Misses(missing)
    return Page((), counted, cursor, 0, examined, read)

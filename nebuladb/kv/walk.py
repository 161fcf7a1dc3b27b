"""A walk over history: changes in their order."""

from __future__ import annotations

from typing import NamedTuple

from nebuladb.errors import Corruption
from nebuladb.kv.change import Change
from nebuladb.kv.rows import KEY_AT, POSITION, Record, decode_row
from nebuladb.kv.source import SnapshotSource, close
from nebuladb.kv.view import load


class Bounds(NamedTuple):
    """Where a walk ends: with the revision in which it has so many rows or bytes, or before one of more than `cut`
    changes or of more than `size` bytes, if `cut` isn't 0; in the midst of it if it begins with one."""

    rows: int
    size: int
    cut: int


class Changes(list[Change]):
    """What a walk met."""

    cut = False
    """They are of one revision, and it has more."""


def walk(
    source: SnapshotSource, start: tuple[int, int], below: tuple[int, int], bounds: Bounds, floor: int | None
) -> Changes:
    """Changes from position `start` on; with a `floor`, what the key was before the revisions above it. Raises
    `Corruption`."""
    changes = Changes()
    size = before = last = begin = 0
    rows = source.scan(source.keys.record_key(*start), source.keys.record_key(*below))
    for row, data in rows:
        main, sub = POSITION.unpack_from(row, KEY_AT)
        if main != last:
            begin, before = len(changes), size
            if begin and (begin >= bounds.rows or size >= bounds.size):
                close(rows)
                break
        elif bounds.cut and (len(changes) - begin >= bounds.cut or size - before >= bounds.size):
            close(rows)
            changes.cut = not begin
            del changes[begin or len(changes) :]
            break
        key, record = decode_row(data)
        if record.main != main or record.sub != sub:
            raise Corruption(f"row {main}.{sub} of the history is of another revision")
        past = superseded(source, key, record) if floor is not None and main > floor else None
        changes.append(Change(key, record, past))
        # What was before counts: a thousand small puts over values of 1.5 MiB would else be 1.5 GiB in one turn.
        size += len(row) + len(data) + (len(past.value) if past is not None else 0)
        last = main
    return changes


def superseded(source: SnapshotSource, key: bytes, record: Record) -> Record | None:
    """What the key of a change was before the change's revision, though that changed it twice (etcd 38); of a put that
    makes a key, nothing. Raises `Corruption`."""
    if record.version == 1:
        return None
    while record.past_main == record.main:
        record = load(source, key, record.past_main, record.past_sub)
    if not record.past_main or record.past_deleted:
        return None
    return load(source, key, record.past_main, record.past_sub)

"""Whether the rows of one shard's state agree with each other: for a check of a directory that nobody runs on."""

from __future__ import annotations

from collections.abc import Iterator
from struct import error as struct_error

from nebuladb.errors import Corruption
from nebuladb.ids import Generation, GroupId
from nebuladb.kv import answer_codec
from nebuladb.kv.rows import (
    DELETION_ROW,
    FORMAT,
    KEY_AT,
    LEASE_ID,
    POSITION,
    SESSION_ROW,
    U64,
    Keys,
    Record,
    decode_lease,
    decode_record,
    decode_row,
)
from nebuladb.kv.state import State
from nebuladb.storage.engine import Reader


def verify_rows(reader: Reader, group: GroupId, generation: Generation) -> Iterator[str]:
    """What is wrong, one text each; nothing, if all is well. Reads everything, keeps nothing. Raises `Corruption` where
    the engine finds damage, and then the rest is unknown."""
    keys = Keys(group, generation)
    data = reader.get(keys.state)
    if data is None:
        yield "there is no state row"
        return
    try:
        state = State.decode(data)
    except Corruption as error:
        yield error.message
        return
    yield from _current(reader, keys, state)
    yield from _history(reader, keys, state)
    yield from _leases(reader, keys, state)
    yield from _sessions(reader, keys)
    deletion = reader.get(keys.deletion)
    if deletion is not None and (len(deletion) != DELETION_ROW.size or deletion[0] != FORMAT):
        yield "the row of the deletion is damaged"


def _current(reader: Reader, keys: Keys, state: State) -> Iterator[str]:
    """C: each newest record decodes and stands in R as well; counts and bytes are those of the state."""
    count = size = 0
    for row, data in reader.scan(keys.current, keys.current_end):
        key = row[KEY_AT:]
        try:
            record = decode_record(data)
            copy = reader.get(keys.record_key(record.main, record.sub))
            if copy is None or decode_row(copy) != (key, record):
                yield f"key {key!r}: its newest record, of revision {record.main}, is not the one in the history"
        except Corruption as error:
            yield f"key {key!r}: {error.message}"
            continue
        if record.version:
            count += 1
            size += len(key) + len(record.value)
            if record.lease and reader.get(keys.attached(record.lease)[0] + key) is None:
                yield f"key {key!r} has lease {record.lease}, which doesn't know of it"
        if record.main > state.revision + bool(state.cursor):
            yield f"key {key!r} is of revision {record.main}, the shard is at {state.revision}"
    if (count, size) != (state.keys, state.size):
        yield f"there are {count} keys with {size} bytes, the state says {state.keys} and {state.size}"


def _history(reader: Reader, keys: Keys, state: State) -> Iterator[str]:
    """R: each change decodes, is where it says it is, and its key has a record as new."""
    for row, data in reader.scan(keys.record, keys.record + b"\xff" * 13):
        main, sub = POSITION.unpack_from(row, KEY_AT)
        try:
            key, record = decode_row(data)
            if (record.main, record.sub) != (main, sub):
                yield f"change {main}.{sub} says that it is {record.main}.{record.sub}"
                continue
            newest = reader.get(keys.current + key)
            if newest is None:
                if main > state.floor:
                    yield f"key {key!r} was changed at revision {main} and has no newest record"
            elif _place(decode_record(newest)) < (main, sub):
                yield f"key {key!r} was changed at revision {main}, after its newest record"
        except Corruption as error:
            yield f"change {main}.{sub}: {error.message}"


def _place(record: Record) -> tuple[int, int]:
    return record.main, record.sub


def _leases(reader: Reader, keys: Keys, state: State) -> Iterator[str]:
    """L and K: leases decode and are as many as the state says; what is attached exists and knows its lease."""
    count = 0
    for row, data in reader.scan(keys.lease, keys.lease + b"\xff" * 9):
        count += 1
        try:
            decode_lease(data)
        except Corruption as error:
            yield f"lease {int.from_bytes(row[KEY_AT:], signed=True)}: {error.message}"
    if count != state.leases:
        yield f"there are {count} leases, the state says {state.leases}"
    for row, _ in reader.scan(keys.attachment, keys.lease):
        (lease,) = LEASE_ID.unpack_from(row, KEY_AT)
        key = row[KEY_AT + LEASE_ID.size :]
        newest = reader.get(keys.current + key)
        try:
            attached = newest is not None and decode_record(newest).lease == lease
        except Corruption:
            continue  # said already
        if reader.get(keys.lease_key(lease)) is None:
            yield f"key {key!r} is attached to lease {lease}, which does not exist"
        elif not attached:
            yield f"key {key!r} is attached to lease {lease} and has another, or does not exist"


def _sessions(reader: Reader, keys: Keys) -> Iterator[str]:
    """S and W: sessions and answers decode, and each answer has its session."""
    for row, data in reader.scan(keys.session, keys.session + b"\xff" * 9):
        if len(data) != SESSION_ROW.size or data[0] != FORMAT or len(row) != KEY_AT + U64.size:
            yield "the row of a session is damaged"
    for row, data in reader.scan(keys.answer, keys.answer + b"\xff" * 17):
        try:
            (session,) = U64.unpack_from(row, KEY_AT)
            answer_codec.decode(data)
        except (Corruption, struct_error) as error:
            yield f"an answer of a session: {error}"
            continue
        if reader.get(keys.session + U64.pack(session)) is None:
            yield f"session {session} has an answer and does not exist"

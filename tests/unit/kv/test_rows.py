"""Bytes: golden rows, round trips, and what is no row."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import Corruption
from nebuladb.kv import answer_codec
from nebuladb.kv.answer import (
    Answer,
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    SessionResult,
    TxnResult,
)
from nebuladb.kv.rows import Record, decode_lease, decode_record, decode_row, encode_record
from nebuladb.kv.state import State
from tests.unit.kv.helpers import Log, compact, delete, finish, fresh, grant, open_session, put, run

u64 = st.integers(0, (1 << 64) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
u32 = st.integers(0, (1 << 32) - 1)
P = "000000000000000700000001"
"""Group 7, generation 1."""


def test_golden_rows() -> None:
    """docs/formats.md, byte by byte. A change here is a new format version, not a new expectation."""
    store, engine = fresh()
    log = Log()
    run(store, log, open_session(), grant(5, 10), put(b"k", b"v", 5), clock=1000)
    run(store, log, put(b"k", b"w", session=1 << 16, sequence=3, lowest=2), delete(b"k"), compact(2))
    finish(store)
    rows = {row.hex().removeprefix(P): data.hex() for row, data in engine.scan(b"", b"\xff" * 20)}
    head = "{:02x}{:02x}{:016x}{:08x}{:016x}{:016x}{:016x}{:016x}{:08x}{:016x}{:08x}{:04x}".format
    r2 = head(1, 0, 2, 0, 2, 1, 5, 0, 0, 0, 0, 0) + "76"
    r3 = head(1, 0, 3, 0, 2, 2, 0, 2, 0, 0, 0, 1) + "77"
    r4 = head(1, 1, 4, 0, 0, 0, 0, 3, 0, 0, 0, 2)
    assert rows == {
        "41": "01" + "".join(f"{n:016x}" for n in (2, 1, 4, 2, 1, 1000, 0, 0)) + "00000001" + "00000000"
        + "0" * 32 + "00000000" + "63",
        "43" + "6b": r4,
        "44": "01" + "0000000000000002" + "0000000000000003" + "00000000",
        "4c" + "0000000000000005": "01" + "0000000000002710" + "0000000000002af8" + "0000000000000001",
        "52" + "0000000000000002" + "00000000": "01" + "00000001" + "6b" + r2,
        "52" + "0000000000000003" + "00000000": "01" + "00000001" + "6b" + r3,
        "52" + "0000000000000004" + "00000000": "01" + "00000001" + "6b" + r4,
        "53" + "0000000000010000": "01" + "0000000000020000" + "0000000000000002",
        "57" + "0000000000010000" + "0000000000000003": "01" + "0000000000000003" + "0000" + "0" * 16 + "01" + "00",
    }  # fmt: skip


def test_golden_attachment() -> None:
    store, engine = fresh()
    run(store, Log(), grant(5), put(b"k", b"", 5))
    assert engine.get(bytes.fromhex(P + "4b" + "0000000000000005" + "6b")) == b"\x01"


records = st.builds(
    lambda revisions, n, lease, subs, deleted, after, stride, value: Record(
        revisions[2], subs[0], 0 if deleted else n[0], 0 if deleted else max(n[1], 1), lease, revisions[1], subs[1],
        after, revisions[0], subs[2], stride, b"" if deleted else value,
    ),
    st.lists(u64, min_size=3, max_size=3, unique=True).map(sorted),
    st.lists(u64, min_size=2, max_size=2),
    i64,
    st.lists(u32, min_size=3, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 65535),
    st.binary(max_size=20),
)  # fmt: skip


@given(records)
def test_records_round_trip(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


@given(st.lists(u64, min_size=11, max_size=11), u32, u32, st.binary(max_size=9), st.binary(max_size=9))
def test_states_round_trip(n: list[int], leases: int, place: int, cursor: bytes, configuration: bytes) -> None:
    floor, revision = sorted((n[2], max(n[3], 1)))
    state = State(
        n[0], n[1], configuration, max(revision, 1), floor, n[4], n[5], n[6], n[7], leases, place, cursor, n[8], n[9]
    )
    assert State.decode(state.encode()) == state


@given(st.binary(max_size=150))
def test_what_is_no_row_is_corruption(data: bytes) -> None:
    for decode in (decode_record, decode_row, decode_lease, State.decode, answer_codec.decode):
        read: Any = decode
        with suppress(Corruption):
            read(data)


key_values = st.builds(KeyValue, st.binary(max_size=4), u64, u64, u64, i64, st.binary(max_size=9))
several = st.lists(key_values, max_size=3).map(tuple)
puts = st.builds(PutResult, st.none() | key_values)
deletes = st.builds(DeleteResult, u64, several)
ranges = st.builds(RangeResult, several, u64, st.booleans())
txns = st.builds(TxnResult, st.booleans(), st.lists(st.one_of(puts, deletes, ranges), max_size=3).map(tuple))
results = st.one_of(
    st.none(), puts, deletes, ranges, txns, st.builds(LeaseResult, i64, u64), st.builds(SessionResult, u64)
)
answers = st.builds(Answer, u64, results, st.integers(0, 65535), u64, st.text(max_size=3))


@given(answers, st.data())
@settings(max_examples=200)
def test_answers_round_trip_but_for_the_text(answer: Answer, data: st.DataObject) -> None:
    encoded = answer_codec.encode(answer)
    assert answer_codec.decode(encoded) == answer._replace(message="")
    with pytest.raises(Corruption):
        answer_codec.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(Corruption):
        answer_codec.decode(encoded + b"\0")

"""Keyspaces and descriptors: their bytes, what they own, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.errors import Corruption
from nebuladb.shard import Descriptor, Keyspace, KeyspaceState, Partitioning, Plan, Role, slot_of
from nebuladb.shard.descriptor import SLOTS

U64 = st.integers(0, 2**64 - 1)
SHARD = Descriptor(2, "default", 1, b"a\x00", b"\xff", (0, 0), ((4, 17), (5, 18)), (1, 1))
BYTES = (
    b'{"end":"ff","epoch":1,"format":1,"group":2,"initial":[1,1],"keyspace":"default",'
    b'"replicas":[[4,17],[5,18]],"slots":[0,0],"start":"6100"}'
)

descriptors = st.builds(
    Descriptor,
    U64,
    st.text(max_size=20),
    U64,
    st.binary(max_size=20),
    st.binary(max_size=20),
    st.tuples(st.integers(0, SLOTS), st.integers(0, SLOTS)),
    st.lists(st.tuples(U64, U64), max_size=5).map(tuple),
    st.tuples(U64, U64),
)


def test_bytes_of_a_descriptor() -> None:
    assert SHARD.encode() == BYTES
    assert Descriptor.decode(BYTES) == SHARD


def test_bytes_of_a_descriptor_whose_replicas_have_changed() -> None:
    changed = SHARD.with_role(9, 19, Role.JOINING).with_role(4, 17, Role.LEAVING)
    data = (
        b'{"end":"ff","epoch":1,"format":2,"founders":[4,5],"group":2,"initial":[1,1],"keyspace":"default",'
        b'"replicas":[[4,17],[5,18],[9,19]],"roles":[[4,"leaving"],[9,"joining"]],"slots":[0,0],"start":"6100"}'
    )
    assert changed.encode() == data
    assert Descriptor.decode(data) == changed
    assert [changed.role(replica) for replica in (4, 5, 9)] == [Role.LEAVING, Role.VOTER, Role.JOINING]
    gone = changed.without(4)
    assert (gone.replicas, gone.roles, gone.first_voters) == (((5, 18), (9, 19)), ((9, Role.JOINING),), (4, 5))
    with pytest.raises(Corruption):
        Descriptor.decode(data.replace(b"joining", b"boss"))


def test_bytes_of_a_keyspace() -> None:
    keyspace = Keyspace("default", Partitioning.RANGE)
    assert keyspace.encode() == b'{"format":1,"name":"default","partitioning":"range"}'
    assert Keyspace.decode(keyspace.encode()) == keyspace


@given(descriptors)
def test_a_descriptor_survives_its_bytes(descriptor: Descriptor) -> None:
    assert Descriptor.decode(descriptor.encode()) == descriptor


PLANNED = Keyspace("logs", Partitioning.RANGE, KeyspaceState.CREATING, Plan(2, (b"m\xff",), 4, 10, (17, 18)))
PLANNED_BYTES = (
    b'{"first_group":4,"first_replica":10,"format":2,"name":"logs","nodes":[17,18],"partitioning":"range",'
    b'"shards":2,"splits":["6dff"],"state":"creating"}'
)


def test_bytes_of_a_keyspace_that_a_user_made() -> None:
    assert PLANNED.encode() == PLANNED_BYTES
    assert Keyspace.decode(PLANNED_BYTES) == PLANNED


plans = st.builds(Plan, U64, st.lists(st.binary(max_size=9)).map(tuple), U64, U64, st.lists(U64).map(tuple))
keyspaces = st.one_of(
    st.builds(Keyspace, st.text(max_size=20), st.sampled_from(Partitioning), st.just(KeyspaceState.READY), st.none()),
    st.builds(Keyspace, st.text(max_size=20), st.sampled_from(Partitioning), st.sampled_from(KeyspaceState), plans),
)


@pytest.mark.parametrize(
    "change",
    [{"format": 3}, {"state": "gone"}, {"splits": ["x"]}, {"shards": None}, {"nodes": 1}, {"name": None}],
    ids=str,
)
def test_a_damaged_keyspace_is_refused(change: dict[str, Any]) -> None:
    fields = {**json.loads(PLANNED_BYTES), **change}
    fields = {name: value for name, value in fields.items() if value is not None}
    with pytest.raises(Corruption):
        Keyspace.decode(json.dumps(fields).encode())


@given(keyspaces)
def test_a_keyspace_survives_its_bytes(keyspace: Keyspace) -> None:
    assert Keyspace.decode(keyspace.encode()) == keyspace


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"group": "x"},
        {"start": "zz"},
        {"slots": [1]},
        {"replicas": [[1]]},
        {"initial": 3},
    ],
    ids=str,
)
def test_a_damaged_descriptor_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Corruption):
        Descriptor.decode(json.dumps({**json.loads(BYTES), **change}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", BYTES[:-1]])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(Corruption):
        Descriptor.decode(data)
    with pytest.raises(Corruption):
        Keyspace.decode(data)


def test_an_unknown_partitioning_is_refused() -> None:
    with pytest.raises(Corruption):
        Keyspace.decode(b'{"format":1,"name":"x","partitioning":"sorted"}')


def test_a_range_owns_its_start_and_not_its_end() -> None:
    shard = SHARD._replace(start=b"b", end=b"d")
    owned = [shard.owns(key) for key in (b"a", b"azz", b"b", b"b\0", b"czz", b"d", b"e")]
    assert owned == [False, False, True, True, True, False, False]
    assert shard._replace(end=b"").owns(b"\xff\xff")


# Fixed for ever: a key's slot decides where its row lies.
@pytest.mark.parametrize(
    ("key", "slot"), [(b"", 0), (b"a", 0xE8B7), (b"123456789", 0xCBF4), (b"\xff" * 32, 0xFF6C)], ids=repr
)
def test_slots_are_the_upper_half_of_the_crc(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_a_range_of_slots_owns_by_hash() -> None:
    slot = slot_of(b"123456789")
    assert SHARD._replace(slots=(slot, slot + 1)).owns(b"123456789")
    assert not SHARD._replace(slots=(slot + 1, SLOTS)).owns(b"123456789")
    assert not SHARD._replace(slots=(0, slot)).owns(b"123456789")

"""From keys to shards, against the plainest model: ask every shard whether it owns the key."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.errors import InvariantViolation, KeyspaceNotFound, WrongShard
from nebuladb.shard import Descriptor, Keyspace, Partitioning, RoutingTable
from nebuladb.shard.descriptor import SLOTS

keys = st.binary(max_size=3)


def ranges(cuts: list[bytes]) -> RoutingTable:
    """A range keyspace cut at these keys, listed out of order."""
    edges = [b"", *cuts, b""]
    shards = [
        Descriptor(group, "r", 1, low, high, (0, 0), ()) for group, (low, high) in enumerate(pairwise(edges), start=10)
    ]
    return RoutingTable([Keyspace("r", Partitioning.RANGE)], reversed(shards))


def slots(cuts: list[int]) -> RoutingTable:
    """A hash keyspace cut at these slots, listed out of order."""
    edges = [0, *cuts, SLOTS]
    shards = [Descriptor(group, "h", 1, b"", b"", pair, ()) for group, pair in enumerate(pairwise(edges), start=10)]
    return RoutingTable([Keyspace("h", Partitioning.HASH)], reversed(shards))


range_tables = st.lists(keys.filter(bool), unique=True, max_size=5).map(sorted).map(ranges)
slot_tables = st.lists(st.integers(1, SLOTS - 1), unique=True, max_size=5).map(sorted).map(slots)
tables = st.one_of(range_tables, slot_tables)


def name_of(table: RoutingTable) -> str:
    return next(iter(table.keyspaces))


@given(tables, st.binary(max_size=6))
def test_find_gives_the_one_owner(table: RoutingTable, key: bytes) -> None:
    table.check()
    assert [shard for shard in table.descriptors.values() if shard.owns(key)] == [table.find(name_of(table), key)]


@given(range_tables, keys.filter(bool), keys, st.binary(max_size=6))
def test_covering_lists_the_shards_of_a_range_and_no_other(
    table: RoutingTable, low: bytes, high: bytes, key: bytes
) -> None:
    found = table.covering("r", low, high)
    within = key == low if not high else key >= low and (high == b"\0" or key < high)
    if within:
        assert table.find("r", key) in found
    assert found == [shard for shard in table.shards("r") if shard in found]
    assert len(set(found)) == len(found)
    for shard in found:
        assert not shard.end or shard.end > low
        assert high in (b"", b"\0") or shard.start < high


@given(slot_tables, keys.filter(bool))
def test_a_range_of_a_hash_keyspace_lies_everywhere(table: RoutingTable, key: bytes) -> None:
    assert table.covering("h", key, b"\0") == table.shards("h")
    assert table.covering("h", key, b"") == [table.find("h", key)]


def test_shards_come_in_order_of_keys_and_slots() -> None:
    assert [shard.start for shard in ranges([b"b", b"m"]).shards("r")] == [b"", b"b", b"m"]
    assert [shard.slots for shard in slots([5, 9]).shards("h")] == [(0, 5), (5, 9), (9, SLOTS)]


def test_sole_refuses_what_lies_in_several_shards() -> None:
    table = ranges([b"m"])
    assert table.sole("r", b"a", b"m").start == b""
    assert table.sole("r", b"m", b"\0").start == b"m"
    with pytest.raises(WrongShard, match="2 shards"):
        table.sole("r", b"a", b"m\0")


@pytest.mark.parametrize(("low", "high"), [(b"z", b"a"), (b"m", b"m"), (b"z", b"m")])
def test_a_range_without_keys_lies_where_its_first_key_would(low: bytes, high: bytes) -> None:
    """As in a keyspace of one shard: it is a range that has no keys, not one over several shards."""
    table = ranges([b"d", b"m", b"t"])
    assert table.covering("r", low, high) == []
    assert table.sole("r", low, high) == table.find("r", low)


def test_an_unknown_keyspace_is_named() -> None:
    for call in (lambda: ranges([]).find("nope", b"k"), lambda: ranges([]).covering("nope", b"k", b"")):
        with pytest.raises(KeyspaceNotFound, match="'nope'"):
            call()


def table_of(*shards: Descriptor, partitioning: Partitioning = Partitioning.RANGE) -> RoutingTable:
    return RoutingTable([Keyspace("k", partitioning)], shards)


def part(group: int, low: bytes, high: bytes) -> Descriptor:
    return Descriptor(group, "k", 1, low, high, (0, 0), ())


def slot_part(group: int, low: int, high: int) -> Descriptor:
    return Descriptor(group, "k", 1, b"", b"", (low, high), ())


@pytest.mark.parametrize(
    "table",
    [
        table_of(),
        table_of(part(1, b"a", b"")),
        table_of(part(1, b"", b"z")),
        table_of(part(1, b"", b"a"), part(2, b"b", b"")),
        table_of(part(1, b"", b"b"), part(2, b"a", b"")),
        table_of(part(1, b"", b""), part(2, b"", b"")),
        table_of(partitioning=Partitioning.HASH),
        table_of(slot_part(1, 1, SLOTS), partitioning=Partitioning.HASH),
        table_of(slot_part(1, 0, SLOTS - 1), partitioning=Partitioning.HASH),
        table_of(slot_part(1, 0, 5), slot_part(2, 6, SLOTS), partitioning=Partitioning.HASH),
        table_of(slot_part(1, 0, 6), slot_part(2, 5, SLOTS), partitioning=Partitioning.HASH),
    ],
    ids=[
        "no shard", "no first key", "no last key", "a gap", "an overlap", "twice", "no slots", "no first slot",
        "no last slot", "a gap of slots", "an overlap of slots",
    ],
)  # fmt: skip
def test_check_refuses_what_does_not_cover_every_key_once(table: RoutingTable) -> None:
    with pytest.raises(InvariantViolation):
        table.check()

"""A keyspace's first shards cover it once, and their ids follow from the record."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.errors import InvariantViolation
from nebuladb.shard import Keyspace, KeyspaceState, Partitioning, Plan, Role, RoutingTable, preferred, shard_of
from nebuladb.shard.descriptor import SLOTS


def keyspace(partitioning: Partitioning, shards: int, splits: tuple[bytes, ...] = ()) -> Keyspace:
    return Keyspace("k", partitioning, KeyspaceState.READY, Plan(shards, splits, 40, 100, (7, 8, 9)))


@given(st.integers(1, 1024))
def test_hash_slots_are_split_evenly_and_cover_once(shards: int) -> None:
    made = keyspace(Partitioning.HASH, shards)
    parts = [shard_of(made, place) for place in range(shards)]
    RoutingTable([made], parts).check()
    widths = {last - first for first, last in (shard.slots for shard in parts)}
    assert max(widths) - min(widths) <= 1
    assert sum(last - first for first, last in (shard.slots for shard in parts)) == SLOTS


@given(st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=8).map(sorted).map(tuple))
def test_a_range_is_cut_at_the_split_keys(splits: tuple[bytes, ...]) -> None:
    made = keyspace(Partitioning.RANGE, len(splits) + 1, splits)
    parts = [shard_of(made, place) for place in range(len(splits) + 1)]
    RoutingTable([made], parts).check()
    assert [shard.start for shard in parts] == [b"", *splits]


def test_ids_follow_from_the_plan_and_stand_once() -> None:
    parts = [shard_of(keyspace(Partitioning.HASH, 5), place) for place in range(5)]
    assert [shard.group for shard in parts] == [40, 41, 42, 43, 44]
    assert parts[1].replicas == ((103, 7), (104, 8), (105, 9))
    issued = [replica for shard in parts for replica, _ in shard.replicas]
    assert issued == list(range(100, 115))


@pytest.mark.parametrize("count", [6, 7, 10, 15])
def test_of_more_than_five_nodes_each_has_its_part_of_votes_and_leaders(count: int) -> None:
    nodes = tuple(range(1, count + 1))
    made = Keyspace("k", Partitioning.HASH, KeyspaceState.CREATING, Plan(150, (), 4, 100, nodes))
    votes, leaders = Counter[int](), Counter[int]()
    for place in range(150):
        shard = shard_of(made, place)
        assert tuple(node for _, node in shard.replicas) == nodes
        voters = [node for replica, node in shard.replicas if shard.role(replica) is Role.VOTER]
        assert [replica for replica, node in shard.replicas if node in voters] == list(shard.first_voters)
        assert len(voters) == 5
        votes.update(voters)
        leaders[preferred(shard.group, voters, voters, ())] += 1
    for counted, whole in ((votes, 150 * 5), (leaders, 150)):
        assert set(counted) == set(nodes)
        assert max(counted.values()) - min(counted.values()) <= whole // count // 3


def test_a_place_that_there_is_not() -> None:
    for place in (-1, 5):
        with pytest.raises(InvariantViolation):
            shard_of(keyspace(Partitioning.HASH, 5), place)
    with pytest.raises(InvariantViolation):
        shard_of(Keyspace("default", Partitioning.RANGE), 0)

"""Keyspaces that users make: planned steps, races, crashes between any two of them, and what dropped ones leave."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from nebuladb.errors import InvalidArgument, KeyspaceExists, KeyspaceNotFound, Outcome, UnknownOutcome
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.node import keyspaces
from nebuladb.node.keyspaces import (
    RESERVED,
    Spec,
    acknowledgement,
    check_name,
    checked,
    create_step,
    drop_step,
    transaction,
    unfinished_step,
)
from nebuladb.node.members import Planner, claim_step, descriptors, report
from nebuladb.node.meta import Removal
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.node.registry import GroupState
from nebuladb.shard import KeyspaceState, Partitioning, Role
from tests.unit.node.rows import Rows
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

HASH = checked(Spec("h", Partitioning.HASH, 4))
GROUPS = [4, 5, 6, 7]


# --- plans


def test_a_keyspace_is_routed_to_once_it_is_whole() -> None:
    rows = Rows()
    spec = checked(Spec("big", Partitioning.HASH, 300))
    states = []
    while (step := create_step(rows.meta, spec)) is not None:
        with pytest.raises(KeyspaceNotFound):
            rows.meta.routing.shards("big")
        assert rows.run(step)
        states.append(len(rows.meta.shards) - 2)
    assert states == [0, 127, 254, 300, 300]
    assert [shard.group for shard in rows.meta.routing.shards("big")] == list(range(4, 304))
    assert unfinished_step(rows.meta) is None


def test_of_two_creators_one_wins_and_ids_are_never_issued_twice() -> None:
    rows = Rows()
    other = checked(Spec("other", Partitioning.RANGE, splits=(b"m",)))
    first, second = create_step(rows.meta, HASH), create_step(rows.meta, checked(Spec("h", Partitioning.HASH, 9)))
    third = create_step(rows.meta, other)
    assert first
    assert second
    assert third
    assert rows.run(first)
    assert not rows.run(second)
    assert not rows.run(third), "it was planned with the same ids"
    with pytest.raises(KeyspaceExists):
        create_step(rows.meta, checked(Spec("h", Partitioning.HASH, 9)))
    rows.create(other)
    rows.create(HASH)
    issued = [replica for shard in rows.meta.shards.values() for replica, _ in shard.replicas]
    assert len(set(issued)) == len(issued)
    assert rows.create(HASH) == 0, "repeating it does nothing"


def test_a_creators_late_steps_do_nothing_once_a_drop_began() -> None:
    rows = Rows()
    step = create_step(rows.meta, HASH)
    assert step
    rows.run(step)
    late = create_step(rows.meta, HASH)
    drop = drop_step(rows.meta, "h")
    assert late
    assert drop
    assert rows.run(drop)
    assert not rows.run(late)
    while (last := unfinished_step(rows.meta)) is not None:
        assert rows.run(last)
    assert "h" not in rows.meta.keyspaces
    assert not rows.meta.removals, "nothing of it had been made"
    assert drop_step(rows.meta, "h") is None


def test_dropping_leaves_an_order_for_every_replica_and_no_descriptor() -> None:
    rows = Rows()
    rows.create(HASH)
    replicas = {(s.group, r, n) for s in rows.meta.shards.values() if s.keyspace == "h" for r, n in s.replicas}
    while (step := drop_step(rows.meta, "h")) is not None:
        assert rows.run(step)
        with pytest.raises(KeyspaceNotFound):
            rows.meta.routing.shards("h")
    assert set(rows.meta.removals) == replicas
    assert sorted(rows.meta.shards) == [2, 3]
    assert rows.run(acknowledgement(rows.meta.removals))
    assert not rows.meta.removals


class Growing(Rows):
    """A fourth node is started, and the planner of the meta group's leader sees to it."""

    def __init__(self) -> None:
        super().__init__()
        self._founding = Trio().founding
        self._run_step(claim_step(self.meta, "n4", "n4:2", 5, 44))

    def planned(self) -> bytes | None:
        return Planner(self._founding).step(self.meta)

    def plan(self) -> None:
        """Until nothing is left but what groups' leaders do, and do that."""
        while (step := self.planned()) is not None:
            self._run_step(step)
        for shard in descriptors(self.meta, self._founding):
            found = shard
            for replica, node in shard.replicas:
                found = found.with_role(replica, node, Role.VOTER)
            self._run_step(report(self.meta, self._founding, found))

    def complete(self) -> bool:
        """Whether the new node is a member, and everything is on all members."""
        nodes = {node for node, record in self.meta.nodes.items() if record.state is NodeState.MEMBER}
        return 44 in nodes and all({node for _, node in shard.replicas} == nodes for shard in self.meta.shards.values())

    def _run_step(self, step: bytes | None) -> None:
        assert step is not None
        assert self.run(step)


def test_a_keyspace_planned_before_a_node_was_a_member_is_planned_anew() -> None:
    """The simulator's seed 5702, --seconds 9: nobody saw to it that the new node got its replicas."""
    rows = Growing()
    rows.plan()
    late = create_step(rows.meta, HASH)
    assert late
    became = rows.planned()
    assert became
    assert rows.run(became)
    assert rows.meta.nodes[44].state is NodeState.MEMBER
    assert not rows.run(late)
    rows.create(HASH)
    assert rows.complete()


def test_a_node_is_no_member_yet_if_a_keyspace_was_planned_without_it() -> None:
    rows = Growing()
    rows.plan()
    became = rows.planned()
    begun = create_step(rows.meta, HASH)
    assert became
    assert begun
    assert rows.run(begun)
    assert not rows.run(became)
    rows.create(HASH)
    rows.plan()
    while (step := rows.planned()) is not None:
        assert rows.run(step)
    assert rows.complete()


def test_nobody_is_removed_before_a_keyspace_is_made_whose_plan_may_name_it() -> None:
    """Its shards would have a replica each on a node that is no more, which votes."""
    rows, planner = Rows(), Planner(Trio().founding)
    fourth = NodeRecord(44, "n4", "n4:2")
    assert rows.run(transaction({}, {fourth.key: fourth.encode()}))
    begun = create_step(rows.meta, HASH)
    assert begun
    assert rows.run(begun)
    assert rows.run(transaction({}, {fourth.key: fourth._replace(state=NodeState.LEAVING).encode()}))
    assert planner.step(rows.meta) is None
    rows.create(HASH)
    leaves = planner.step(rows.meta)
    assert leaves
    assert rows.run(leaves)
    its = [shard.role(replica) for shard in rows.meta.shards.values() for replica, node in shard.replicas if node == 44]
    assert its == [Role.LEAVING] * 4


def test_a_late_step_of_a_creator_takes_no_replica_back_that_was_added_meanwhile() -> None:
    rows = Growing()
    begun = create_step(rows.meta, HASH)
    assert begun
    rows.run(begun)
    late = create_step(rows.meta, HASH)
    step = create_step(rows.meta, HASH)
    assert late
    assert step
    rows.run(step)
    rows.plan()
    assert all(len(shard.replicas) == 4 for shard in rows.meta.shards.values())
    assert not rows.run(late)
    assert all(len(shard.replicas) == 4 for shard in rows.meta.shards.values())


def test_a_drop_from_an_old_picture_leaves_no_replica_behind() -> None:
    """The simulator's seed 5615, --seconds 9: one that had been issued meanwhile was never destroyed."""
    rows = Growing()
    rows.create(HASH)
    begun = drop_step(rows.meta, "h")
    assert begun
    rows.run(begun)
    late = drop_step(rows.meta, "h")
    rows.plan()
    replicas = {(s.group, r, n) for s in rows.meta.shards.values() if s.keyspace == "h" for r, n in s.replicas}
    assert len(replicas) == 4 * len(GROUPS)
    assert late
    assert not rows.run(late)
    while (step := drop_step(rows.meta, "h")) is not None:
        assert rows.run(step)
    assert set(rows.meta.removals) == replicas


def test_members_without_a_replica_of_some_shards_get_learners() -> None:
    """An older build gave five of six members one. Nothing else has to happen for it."""
    rows = Rows()
    rows.create(HASH)
    for node in (44, 45, 46):
        record = NodeRecord(node, f"m{node}", f"m{node}:2")
        rows.rows[record.key] = rows.revision, record.encode()
    planner = Planner(Trio().founding)
    steps = 0
    while (step := planner.step(rows.meta)) is not None:
        assert rows.run(step)
        steps += 1
    assert steps == 1
    for shard in (rows.meta.own, *rows.meta.shards.values()):
        assert shard is not None
        assert {node for _, node in shard.replicas} == {11, 12, 13, 44, 45, 46}
        assert sorted(role for _, role in shard.roles) == [Role.JOINING, Role.JOINING, Role.LEARNER]
    meta = rows.meta
    assert planner.step(meta) is None
    assert planner.step(meta) is None


def test_creating_while_it_is_dropped_finishes_the_drop_first() -> None:
    rows = Rows()
    rows.create(HASH)
    step = drop_step(rows.meta, "h")
    assert step
    rows.run(step)
    rows.create(HASH)
    assert [shard.group for shard in rows.meta.routing.shards("h")] == [8, 9, 10, 11]


def test_a_picture_carried_on_by_changes_is_the_one_read_anew() -> None:
    trio = Trio.started(1)
    trio.drive(0, partial(create_step, spec=HASH))
    trio.drive(0, partial(drop_step, name="h"))
    carried = trio.node(0).meta
    trio.node(0)._read_meta()
    read = trio.node(0).meta
    assert (carried.keyspaces, carried.shards, carried.removals) == (read.keyspaces, read.shards, read.removals)
    assert (carried._rows, carried._orders) == (read._rows, read._orders)


@pytest.mark.parametrize("name", ["", "A", "a b", "ä", "a/b", "x" * 65, *RESERVED])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_name(name)


@pytest.mark.parametrize(
    "spec",
    [
        Spec("k", Partitioning.HASH, 0),
        Spec("k", Partitioning.HASH, 1025),
        Spec("k", Partitioning.HASH, 2, (b"m",)),
        Spec("k", Partitioning.SINGLE, 2),
        Spec("k", Partitioning.RANGE, 1, (b"",)),
        Spec("k", Partitioning.RANGE, 1, (b"b", b"a")),
        Spec("k", Partitioning.RANGE, 1, (b"a", b"a")),
        Spec("k", Partitioning.RANGE, 1, (b"x" * 1025,)),
    ],
    ids=str,
)
def test_what_cannot_be_made(spec: Spec) -> None:
    with pytest.raises(InvalidArgument):
        checked(spec)


def test_a_full_cluster_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyspaces, "MAX_CLUSTER_SHARDS", 9)
    rows = Rows()
    rows.create(HASH)
    with pytest.raises(InvalidArgument, match="drop a keyspace"):
        create_step(rows.meta, HASH._replace(name="more"))
    rows.create(HASH._replace(name="more", shards=3))


def test_bytes_of_a_removal() -> None:
    removal = Removal(4, 10, 0xFFFF_FFFF_FFFF_FFFF)
    assert removal.key == b"removed/0000000000000004/000000000000000a"
    assert removal.encode() == b'{"format":1,"group":4,"node":18446744073709551615,"replica":10}'
    assert Removal.decode(removal.encode()) == removal


# --- nodes


def made(trio: Trio) -> None:
    trio.start()
    trio.founded()
    trio.drive(0, partial(create_step, spec=HASH))
    trio.until(lambda: all(trio.leader(group) is not None for group in GROUPS), "leaders")


def gone(trio: Trio, place: int) -> bool:
    """Whether nothing of the keyspace is left on a node: replica, log, data, order."""
    node = trio.node(place)
    held = {int(group) for group, _ in Store.generations(node.data)} | set(map(int, node.log.groups()))
    mine = [removal for removal in node.meta.removals if removal.node == node.identity.node]
    return not mine and not ({*node.host.replicas, *node.groups, *held} & set(GROUPS))


def test_a_created_keyspace_is_on_every_node_with_leaders_spread() -> None:
    trio = Trio()
    made(trio)
    assert all(trio.normal(place) == [1, 2, 3, *GROUPS] for place in range(3))
    assert sorted(Counter(trio.leader(group) for group in GROUPS).values()) == [1, 1, 2]


def test_a_dropped_keyspace_leaves_tombstones_and_nothing_else() -> None:
    trio = Trio()
    made(trio)
    trio.drive(1, partial(drop_step, name="h"))
    trio.until(lambda: all(gone(trio, place) for place in range(3)), "gone everywhere")
    for place in range(3):
        assert {trio.registry(place)[group].state for group in GROUPS} == {GroupState.TOMBSTONE}
    trio.crash(0, 1, 2)
    trio.start()
    trio.founded()
    assert all(gone(trio, place) for place in range(3))
    trio.drive(2, partial(create_step, spec=HASH))
    assert [shard.group for shard in trio.node(2).meta.routing.shards("h")] == [8, 9, 10, 11], "ids are not used again"


def test_a_node_that_was_down_learns_of_a_drop_from_meta() -> None:
    trio = Trio()
    made(trio)
    trio.crash(2)
    trio.drive(0, partial(drop_step, name="h"))
    trio.until(lambda: gone(trio, 0) and gone(trio, 1), "gone on the others")
    assert {removal.node for removal in trio.node(0).meta.removals} == {13}
    trio.start(2)
    assert set(GROUPS) & set(trio.node(2).host.replicas), "absence of nothing destroys anything (S17)"
    trio.until(lambda: gone(trio, 2), "gone on the third")
    trio.until(lambda: not trio.node(0).meta.removals, "acknowledged")


def test_a_node_that_was_down_for_the_whole_life_of_a_keyspace() -> None:
    trio = Trio.started()
    trio.crash(2)
    trio.drive(0, partial(create_step, spec=HASH))
    trio.drive(0, partial(drop_step, name="h"))
    trio.start(2)
    trio.until(lambda: not trio.node(0).meta.removals, "acknowledged")
    assert trio.normal(2) == [1, 2, 3]


@pytest.mark.parametrize("turns", range(8))
def test_a_crash_at_any_turn_of_a_removal(turns: int) -> None:
    trio = Trio()
    made(trio)
    for _ in range(4):  # a step more than there are
        step = drop_step(trio.node(0).meta, "h")
        if step is not None:
            trio.node(0).submit(1, Command(Kind.TXN, step), trio.time + 20_000)
        trio.settle(turns)
        trio.crash(*range(3))
        trio.start()
        trio.founded()
    trio.drive(0, partial(drop_step, name="h"))
    trio.until(lambda: all(gone(trio, place) for place in range(3)), "gone everywhere")
    trio.until(lambda: not trio.node(0).meta.removals, "acknowledged")


def test_the_data_goes_when_the_tombstone_is_durable_and_no_earlier() -> None:
    trio = Trio()
    made(trio)
    node = trio.node(0)
    reconciler, host = node.reconciler, node.host
    [(replica, _)] = [pair for pair in node.meta.shards[4].replicas if pair[1] == 11]
    assert not reconciler.remove(Removal(4, replica + 1, 11)), "that is another replica"
    assert reconciler.remove(Removal(4, replica, 11))
    batch = host.poll().batch
    assert batch is not None
    assert not reconciler.destroy()
    assert reconciler.done([Removal(4, replica, 11)]) == []
    assert Store.exists(node.data, GroupId(4), Generation(1)), "a crash now may bring the replica back"
    host.durable(batch.id)
    assert reconciler.destroy()
    assert not Store.exists(node.data, GroupId(4), Generation(1))
    assert reconciler.done([Removal(4, replica, 11), Removal(4, 99, 12)]) == [Removal(4, replica, 11)]


def test_what_waits_for_a_dropped_group_is_answered() -> None:
    trio = Trio()
    made(trio)
    follower = next(place for place in range(3) if place != trio.leader(4))
    sent = trio.node(follower).submit(4, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 60_000)
    read = trio.node(follower).read(4, trio.time + 60_000)
    trio.node(follower).host.remove_group(4, b"")
    output = trio.node(follower).host.poll()
    answers = dict(output.answers)
    assert answers[sent].outcome is Outcome.FAILED  # type: ignore[union-attr]  # an error, else the test fails
    assert [request for request, error in output.reads if error] == [read]
    away = trio.node(trio.leader(5) or 0)
    placed = away.submit(5, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 60_000)
    away.host.poll()
    away.host.remove_group(5, b"")
    assert isinstance(dict(away.host.poll().answers)[placed], UnknownOutcome)


def test_watchers_of_a_dropped_keyspace_are_canceled() -> None:
    trio = Trio()
    made(trio)
    hub = trio.node(0).groups[4].hub
    watchers = [hub.watch(b"a"), hub.watch(b"a", b"b")]
    trio.drive(0, partial(drop_step, name="h"))
    assert all(watcher.canceled and not watcher.compact_revision for watcher in watchers)


@pytest.mark.parametrize("steps", range(4))
def test_the_leader_of_meta_finishes_what_a_dead_creator_left(steps: int) -> None:
    trio = Trio.started()
    for _ in range(steps):
        step = create_step(trio.node(0).meta, HASH)
        if step is not None:
            trio.step(0, step)
    state = KeyspaceState.READY
    trio.until(lambda: steps == 0 or trio.node(1).meta.keyspaces["h"].state is state, "ready")
    for _ in range(steps):
        step = drop_step(trio.node(0).meta, "h")
        if step is not None:
            trio.step(0, step)
    trio.until(lambda: all(gone(trio, place) for place in range(3)), "gone")
    trio.until(lambda: "h" not in trio.node(2).meta.keyspaces, "forgotten")


# --- who leads


def homes(trio: Trio) -> dict[int, int | None]:
    return {group: trio.leader(group) for group in GROUPS}


def test_leaders_go_home_when_their_node_is_back_and_do_not_flap() -> None:
    trio = Trio()
    made(trio)
    before = homes(trio)
    founding = [trio.leader(group) for group in (1, 2, 3)]
    victim = next(place for place in range(3) if place not in founding and place in before.values())
    trio.crash(victim)
    trio.until(lambda: all(place not in (None, victim) for place in homes(trio).values()), "new leaders")
    trio.start(victim)
    trio.run(2_000)
    assert victim not in homes(trio).values(), "a node that has just come back must prove itself"
    trio.until(lambda: homes(trio) == before, "home again")
    terms = {group: trio.node(0).host.replicas[group].raft.term for group in (1, 2, 3, *GROUPS)}
    trio.run(30_000)
    assert {group: trio.node(0).host.replicas[group].raft.term for group in terms} == terms, "nothing moves any more"


def test_who_is_connected_and_not_heard_from_gets_no_groups() -> None:
    """A hand-over that nobody takes costs its group an election timeout without writes, again and again."""
    trio = Trio()
    made(trio)
    before = homes(trio)
    victim = next(place for place in (1, 2) if place in before.values())
    trio.hung.add(victim)
    trio.until(lambda: all(place not in (None, victim) for place in homes(trio).values()), "new leaders")
    for _ in range(400):
        trio.run(50)
        hosts = [trio.node(place).host for place in range(3) if place != victim]
        assert not any(replica.raft.transferee for host in hosts for replica in host.replicas.values())
    trio.hung.remove(victim)
    trio.until(lambda: homes(trio) == before, "home again")

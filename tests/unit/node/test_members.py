"""Nodes join, leave and are replaced: whole nodes with disks in memory, by the steps that the product takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

from nebuladb.errors import ChangeRefused, NebulaError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.command import Command, Kind
from nebuladb.node.keyspaces import Spec, create_step
from nebuladb.node.members import add_step, promote_step, remove_step, replace_step
from nebuladb.node.meta import VERSION_KEY, Meta
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.raft import Configuration, MessageType
from nebuladb.raft.confchange import Change
from nebuladb.shard import Partitioning
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.trio import Trio
from tests.unit.node.wire import decode_frame, put_request

GROUPS = (META_GROUP, DEFAULT_GROUP, ETCD_GROUP)


def put(trio: Trio, key: bytes, place: int = 0, group: int = DEFAULT_GROUP) -> None:
    """A write that succeeds."""
    machine = trio.machines[place]
    request = trio.node(place).submit(group, Command(Kind.PUT, put_request(key, b"v")), trio.time + 20_000)
    trio.until(lambda: request in machine.answers, "an answer")
    assert not isinstance(machine.answers[request], Exception), machine.answers[request]


def with_learner() -> tuple[Trio, int]:
    """Three nodes that vote, and the place of a fourth that doesn't, and has all groups."""
    trio = Trio.started()
    trio.drive(0, lambda meta: add_step(meta, "n4", "n4:2", 88, learner=True))
    place = trio.join("n4")
    trio.until(lambda: trio.node(place).groups.keys() >= set(GROUPS), "it has all groups")
    return trio, place


def voters(trio: Trio, group: int, place: int = 0) -> set[int]:
    """Places whose replicas vote, as a node has it."""
    replica = trio.node(place).host.replicas[group]
    configuration = replica.raft.configuration
    assert not configuration.outgoing
    nodes = {founder.node: number for number, founder in enumerate(trio.who)}
    return {nodes.get(replica.home(voter), -1) for voter in configuration.voters}


def are(trio: Trio, places: Iterable[int], groups: Iterable[int] = GROUPS) -> None:
    """Until exactly `places` vote in all groups, on all of them, with one state."""
    places = set(places)

    def level() -> bool:
        for group in groups:
            for place in places:
                host = trio.node(place).host
                if group not in host.replicas or host.replicas[group].raft.configuration.outgoing:
                    return False
                if voters(trio, group, place) != places:
                    return False
        return all(
            len({(d.store.index, d.store.revision) for p in places for d in [trio.node(p).groups[group]]}) == 1
            for group in groups
        )

    trio.until(level, f"{places} vote")


def remove(trio: Trio, place: int, through: int) -> None:
    """As the operator does."""
    node = trio.node(through)
    connected = {node.identity.node, *(peer for peer, known in node.host.peers.items() if known.connected)}
    trio.drive(through, lambda meta: remove_step(meta, trio.founding, trio.who[place].name, connected))


def test_one_node_grows_to_five_and_shrinks_to_three() -> None:
    trio = Trio.started(1)
    put(trio, b"first")
    for count in range(1, 5):
        place = trio.join(f"m{count}")
        trio.until(lambda place=place: trio.state(place) is NodeState.MEMBER, "a member")  # type: ignore[misc]
        put(trio, b"%d" % count, place)
        are(trio, range(count + 1))
    for place in (4, 0):
        remove(trio, place, 1)
        trio.until(lambda place=place: trio.state(place, 1) is NodeState.REMOVED, "removed")  # type: ignore[misc]
        trio.until(lambda place=place: bool(trio.machines[place].removed), "told")  # type: ignore[misc]
    are(trio, (1, 2, 3))
    put(trio, b"last", 1)
    assert trio.node(1).groups[DEFAULT_GROUP].store.key_count == 6


def test_more_than_five_nodes_all_answer_and_a_learner_takes_a_lost_vote() -> None:
    trio = Trio.started(5)
    place = trio.join("m1")
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "a member")
    spec = Spec("u", Partitioning.HASH, 6)
    trio.drive(place, lambda meta: create_step(meta, spec))
    groups = (*GROUPS, *range(4, 10))
    for group in groups:
        trio.until(lambda group=group: group in trio.node(place).host.replicas, "a replica")  # type: ignore[misc]
        if group != META_GROUP:
            put(trio, b"k%d" % group, place, group)
    chosen = [voters(trio, group, place) for group in groups[3:]]
    assert {len(one) for one in chosen} == {5}
    assert set.union(*chosen) == set(range(6))
    trio.crash(0)
    remove(trio, 0, 1)
    trio.until(lambda: trio.state(0, 1) is NodeState.REMOVED, "removed")
    are(trio, range(1, 6), groups)
    put(trio, b"last", place)


def test_the_leader_of_everything_leaves_by_handing_over() -> None:
    trio = Trio.started()
    trio.crash(1)
    trio.run(3_000)
    trio.start(1)
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    other = (leader + 1) % 3
    remove(trio, leader, other)
    trio.until(lambda: trio.state(leader, other) is NodeState.REMOVED, "removed")
    are(trio, {0, 1, 2} - {leader})
    put(trio, b"k", other)


def test_a_dead_node_is_removed_and_stops_when_it_comes_back() -> None:
    trio = Trio.started()
    trio.crash(2)
    remove(trio, 2, 0)
    trio.until(lambda: trio.state(2) is NodeState.REMOVED, "removed")
    are(trio, (0, 1))
    # Nobody is left to carry its orders out.
    trio.until(lambda: not trio.node(0).meta.removals, "no orders for it")
    trio.start(2)
    trio.until(lambda: bool(trio.machines[2].removed), "told")
    assert "`nebula-cli member add n3 --peer-address HOST:PORT`" in trio.machines[2].removed
    put(trio, b"k")


def test_a_dead_node_is_replaced_by_one_joint_change() -> None:
    trio = Trio.started()
    put(trio, b"before")
    trio.crash(0)
    trio.run(3_000)
    trio.drive(1, lambda meta: replace_step(meta, "n1", "n1b", "n1b:2", 77))
    place = trio.join("n1b", 1)
    assert trio.who[place].node == 77
    trio.until(lambda: trio.state(place, 1) is NodeState.MEMBER, "a member")
    trio.until(lambda: trio.state(0, 1) is NodeState.REMOVED, "removed")
    are(trio, (1, 2, place))
    put(trio, b"after", place)
    put(trio, b"more", 1)


def test_a_node_that_dies_while_it_replaces_another_is_replaced_itself() -> None:
    """The refusal named the node that was leaving as the one to wait for, or to remove."""
    trio = Trio.started()
    trio.crash(0)
    trio.run(3_000)
    trio.drive(1, lambda meta: replace_step(meta, "n1", "y", "y:2", 77))
    dead = trio.join("y", 1)
    trio.crash(dead)
    with pytest.raises(ChangeRefused, match=r"'y' replaces 'n1' already, .* start it, or replace it: .* replace y`"):
        replace_step(trio.node(1).meta, "n1", "z", "z:2", 78)
    with pytest.raises(ChangeRefused, match="another change"):
        replace_step(trio.node(1).meta, "n2", "z", "z:2", 78)
    trio.drive(1, lambda meta: replace_step(meta, "y", "z", "z:2", 78))
    place = trio.join("z", 1)
    for gone in (0, dead):
        trio.until(lambda gone=gone: trio.state(gone, 1) is NodeState.REMOVED, "removed")  # type: ignore[misc]
    trio.until(lambda: trio.state(place, 1) is NodeState.MEMBER, "a member")
    are(trio, (1, 2, place))
    put(trio, b"after", place)


def test_a_joint_configuration_is_left_after_a_hand_over_that_failed() -> None:
    """It came into force while leadership was being handed over, and nobody thought of it afterwards."""
    trio = Trio.started()
    trio.crash(0)
    trio.run(3_000)
    lost = [True]
    trio.lose = lambda sender, receiver, frame: (
        lost[0] and any(envelope.message.type == MessageType.TIMEOUT_NOW for envelope in decode_frame(frame)[1])
    )
    begun: list[int] = []

    def hand_over_with_the_change(place: int) -> None:
        host = trio.node(place).host
        propose = host.propose_change

        def propose_change(group: int, changes: Sequence[Change]) -> None:
            propose(group, changes)
            if group == DEFAULT_GROUP and len(changes) > 1 and not begun:
                begun.append(place)
                host.transfer_leadership(group, trio.who[3 - place].node)

        host.propose_change = propose_change  # type: ignore[method-assign]

    for place in (1, 2):
        hand_over_with_the_change(place)
    trio.drive(1, lambda meta: replace_step(meta, "n1", "n1b", "n1b:2", 77))
    new = trio.join("n1b", 1)
    trio.until(lambda: bool(begun), "a joint configuration is proposed")
    trio.run(1_000)
    lost[0] = False
    trio.until(lambda: trio.state(new, 1) is NodeState.MEMBER, "a member")
    are(trio, (1, 2, new))


def test_who_missed_a_replacement_follows_a_leader_that_it_has_never_heard_of() -> None:
    """The simulator's seed 5532: it took all that the new replica said for misdirected, so it never heard of the change
    either, and with the third node gone there was no majority (thesis §4.1)."""
    trio = Trio.started()
    trio.crash(1)
    trio.drive(0, lambda meta: replace_step(meta, "n3", "n3b", "n3b:2", 77))
    place = trio.join("n3b", 0)
    trio.until(lambda: trio.state(2) is NodeState.REMOVED, "removed")
    trio.crash(2)
    for group in GROUPS:
        leader = trio.leader(group)
        assert leader is not None
        if leader != place:
            trio.node(leader).host.transfer_leadership(group, 77)
        trio.until(lambda group=group: trio.leader(group) == place, "the new node leads")  # type: ignore[misc]
    put(trio, b"missed")
    trio.crash(0)
    trio.start(1)
    put(trio, b"after", 1)
    trio.start(0)
    are(trio, (0, 1, place))


def test_every_shard_of_a_keyspace_gets_a_replica_on_a_new_node() -> None:
    trio = Trio.started()
    spec = Spec("h", Partitioning.HASH, 5)
    trio.drive(0, lambda meta: create_step(meta, spec))
    place = trio.join("n4")
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "a member")
    groups = sorted(trio.node(0).meta.shards)
    assert len(groups) == 7
    are(trio, range(4), groups)
    remove(trio, 1, 0)
    trio.until(lambda: trio.state(1) is NodeState.REMOVED, "removed")
    are(trio, (0, 2, place), groups)


def test_a_learner_of_a_group_that_rests_is_promoted() -> None:
    """Its leader sends no heartbeats, by which it would see that the learner has caught up."""
    trio, place = with_learner()
    leader = trio.leader(ETCD_GROUP)
    assert leader is not None
    resting = trio.node(leader).host.replicas[ETCD_GROUP].raft
    trio.until(lambda: resting.quiet, "the group rests")
    assert resting.configuration.learners
    # As if the learner had never been seen to catch up: the leader is a new one, and rests since its first heartbeat.
    for progress in resting._replication.tracker.progress.values():
        progress.caught_up = False
    trio.drive(0, lambda meta: promote_step(meta, "n4"))
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "a member")


def test_a_learner_votes_when_it_is_promoted() -> None:
    trio, place = with_learner()
    trio.run(3_000)
    assert all(voters(trio, group) == {0, 1, 2} for group in GROUPS)
    assert trio.node(0).host.replicas[DEFAULT_GROUP].raft.configuration.learners
    trio.drive(0, lambda meta: promote_step(meta, "n4"))
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "a member")
    are(trio, range(4))


def test_a_learner_that_is_away_is_promoted_when_it_comes() -> None:
    """Its groups rest, and it lacks nothing: as a voter it would leave three others none to lose."""
    trio, place = with_learner()
    trio.crash(place)
    trio.run(5_000)
    trio.drive(0, lambda meta: promote_step(meta, "n4"))
    trio.run(5_000)
    assert all(voters(trio, group) == {0, 1, 2} for group in GROUPS)
    trio.start(place)
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "a member")


@pytest.mark.parametrize("seed", range(6))
def test_crashes_at_any_point_of_a_change_lose_nothing_of_it(seed: int) -> None:
    """Nodes die at moments that the seed chooses, the new one and the planner's among them; the change ends all the
    same."""
    trio = Trio(seed=seed)
    rng = trio._rng
    trio.start()
    trio.founded()
    put(trio, b"before")
    place = trio.join("n4")
    for _ in range(8):
        trio.run(rng.randrange(50, 600))
        victim = rng.randrange(len(trio.machines))
        if trio.machines[victim].node is not None:
            trio.crash(victim)
            trio.run(rng.randrange(50, 400))
            trio.start(victim)
    trio.until(lambda: trio.state(place, 1) is NodeState.MEMBER, "a member")
    are(trio, range(4))
    remove(trio, 0, 1)
    for _ in range(5):
        trio.run(rng.randrange(50, 600))
        victim = rng.choice((1, 2, place))
        trio.crash(victim)
        trio.run(rng.randrange(50, 400))
        trio.start(victim)
    trio.until(lambda: trio.state(0, 1) is NodeState.REMOVED, "removed")
    are(trio, (1, 2, place))
    put(trio, b"after", place)


def test_a_leader_acts_on_no_old_picture_of_who_is_to_be_a_member() -> None:
    """It hears late from meta that a node, which was to join, has been removed since: it must not bring it back."""
    trio = Trio.started()
    old: dict[int, Meta] = {}

    def joining(place: int) -> bool:
        meta = trio.node(place).meta
        if place < 3 and DEFAULT_GROUP in meta.changing:
            old.setdefault(place, meta)
        return len(old) == 3

    new = trio.join("n4")
    trio.until(lambda: any(joining(place) for place in range(3)), "all know that a replica is to be added")
    trio.until(lambda: trio.state(new) is NodeState.MEMBER, "a member")
    remove(trio, new, 0)
    trio.until(lambda: trio.state(new) is NodeState.REMOVED, "removed")
    are(trio, range(3))
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    node = trio.node(leader)
    ask, newest, proposed = node.ask, node.meta, list[tuple[int, Sequence[Change]]]()

    def ask_meta(group: int, milliseconds: int, then: Callable[[NebulaError | None], None]) -> None:
        def confirmed(error: NebulaError | None) -> None:
            node.meta = newest  # what it had not heard is applied before the read may be served
            then(error)

        ask(group, milliseconds, confirmed if group == META_GROUP else then)

    def propose(group: int, changes: Sequence[Change]) -> None:
        proposed.append((group, changes))

    node.ask = ask_meta  # type: ignore[method-assign]
    node.host.propose_change = propose  # type: ignore[method-assign]
    node.meta = old[leader]
    trio.until(lambda: node.meta is newest or bool(proposed), "the leader looks into the change")
    trio.run(1_000)
    assert proposed == []


def test_what_is_unsafe_is_refused_with_the_reason() -> None:
    trio = Trio.started()
    meta = trio.node(0).meta
    everyone = {11, 12, 13}
    refusals: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: add_step(meta, "n2", "x:1", 5), "there is a node 'n2'"),
        (lambda: add_step(meta, "n4", "n2:2", 5), "has the peer address"),
        (lambda: remove_step(meta, trio.founding, "n9", everyone), "there is no node 'n9'"),
        (lambda: remove_step(meta, trio.founding, "n1", {11, 12}), "no live majority"),
        (lambda: promote_step(meta, "n9"), "there is no node 'n9'"),
        (lambda: replace_step(meta, "n1", "n2", "x:1", 5), "a name of its own, like n1b"),
    )
    for refused, reason in refusals:
        with pytest.raises(ChangeRefused, match=reason):
            refused()
    trio.crash(2)
    remove(trio, 2, 0)
    with pytest.raises(ChangeRefused, match="another change is under way"):
        remove_step(trio.node(0).meta, trio.founding, "n2", everyone)


def test_who_replaces_a_node_at_another_address_is_taken_back_first() -> None:
    """The name that it has was the one that the text told to take."""
    nodes = [NodeRecord(1, "n1", "a:1"), NodeRecord(2, "n1b", "b:1", state=NodeState.JOINING, replaces=1)]
    rows = {VERSION_KEY: b"1"} | {one.key: one.encode() for one in nodes}
    meta = Meta(KeyValue(key, 2, 2, 1, 0, value) for key, value in sorted(rows.items()))
    assert replace_step(meta, "n1", "n1b", "b:1", 3) is None
    for name in ("n1b", "n1c"):
        with pytest.raises(ChangeRefused, match=r"'n1b' replaces 'n1' already, at b:1; .* `nebula-cli m.* remove n1b`"):
            replace_step(meta, "n1", name, "c:1", 3)
    with pytest.raises(ChangeRefused, match="a name of its own, like n1c"):
        replace_step(meta, "n1", "n1", "c:1", 3)


def test_two_members_do_not_leave_by_one_picture() -> None:
    """Asked through two nodes at once, each of two was removed since the other one stayed: both left, for ever."""
    trio = Trio.started(2)
    meta = trio.node(0).meta
    for step in [remove_step(meta, trio.founding, name, {11, 12}) for name in ("n1", "n2")]:
        assert step is not None
        trio.step(0, step)
    assert [trio.state(place) for place in (0, 1)] == [NodeState.LEAVING, NodeState.MEMBER]
    with pytest.raises(ChangeRefused, match="last member"):
        remove_step(trio.node(0).meta, trio.founding, "n2", {11, 12})


def test_the_last_member_stays() -> None:
    trio = Trio.started(1)
    with pytest.raises(ChangeRefused, match="last member"):
        remove_step(trio.node(0).meta, trio.founding, "n1", {11})


def test_a_configuration_stands_in_the_registry_too() -> None:
    """The data of a node that loses power is older than its registry; what was decided is in force all the same."""
    trio = Trio.started()
    place = trio.join("n4")
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "a member")
    row = trio.registry(0)[DEFAULT_GROUP]
    assert len(row.configuration.voters) == 4
    assert row.configuration_index > row.initial[0]
    trio.crash(0)
    trio.machines[0].data = MemoryEngine(wal=False)  # nothing of it was flushed
    trio.start(0)
    replica = trio.node(0).host.replicas[DEFAULT_GROUP]
    assert replica.applied < row.configuration_index
    assert replica.raft.configuration == row.configuration
    trio.until(lambda: replica.applied >= row.configuration_index, "replayed")
    assert replica.raft.configuration == row.configuration != Configuration((4, 5, 6))


def test_a_dead_node_that_a_leaving_one_waits_for_may_be_removed() -> None:
    """Beyond five nodes the sixth, a learner, shall vote in the place of who leaves; dead, it never will."""
    trio = _six_of_which_the_last_is_dead()
    remove(trio, 0, 1)
    trio.run(10_000)
    assert trio.state(0, 1) is NodeState.LEAVING
    remove(trio, 5, 1)
    for gone in (0, 5):
        trio.until(lambda gone=gone: trio.state(gone, 1) is NodeState.REMOVED, "removed")  # type: ignore[misc]
    are(trio, (1, 2, 3, 4))
    put(trio, b"z", 1)


def test_two_dead_of_six_are_replaced_one_after_the_other() -> None:
    trio = _six_of_which_the_last_is_dead()
    trio.crash(0)
    trio.run(6_000)
    for dead, name, node in (("n1", "y", 77), ("n6", "z", 78)):
        trio.drive(1, lambda meta, old=dead, new=name, node=node: replace_step(meta, old, new, f"{new}:2", node))  # type: ignore[misc]
        trio.join(name, 1)
        trio.run(10_000)
    for gone in (0, 5):
        trio.until(lambda gone=gone: trio.state(gone, 1) is NodeState.REMOVED, "removed")  # type: ignore[misc]
    put(trio, b"z", 1)


def _six_of_which_the_last_is_dead() -> Trio:
    """And behind all others."""
    trio = Trio.started(5)
    trio.join("n6")
    trio.until(lambda: trio.state(5) is NodeState.MEMBER, "member")
    trio.run(5_000)
    trio.crash(5)
    for group in (DEFAULT_GROUP, ETCD_GROUP):
        put(trio, b"w", 1, group)
    trio.run(2_000)
    return trio

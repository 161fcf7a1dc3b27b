"""A node that is short of space, or whose disk hangs: what it refuses, and that it leads nothing (S31, S33)."""

from __future__ import annotations

import pytest

from nebuladb.errors import NoSpace, Unavailable
from nebuladb.ids import DEFAULT_GROUP, META_GROUP, GroupId
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node import batches
from nebuladb.node.disk import Space, wire_grows
from nebuladb.node.entry import encode_command
from nebuladb.node.keyspaces import Spec, checked, create_step
from nebuladb.node.members import add_step, remove_step
from nebuladb.node.options import NodeOptions
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from nebuladb.raft import HardState, Message, MessageType
from nebuladb.shard import Partitioning
from tests.unit.node.boxes import GROUP, Box
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

PUT = Command(Kind.PUT, put_request(b"k", b"v"))
DELETE = Command(Kind.DELETE, kv_pb2.DeleteRequest(key=b"k").SerializeToString())


def txn(*operations: kv_pb2.Operation) -> Command:
    return Command(Kind.TXN, kv_pb2.TxnRequest(failure=operations).SerializeToString())


@pytest.mark.parametrize(
    ("command", "grows"),
    [
        (PUT, True),
        (DELETE, False),
        (txn(kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"k"))), True),
        (txn(kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=b"k"))), False),
        (Command(Kind.TXN, b"\xff"), True),
        (Command(Kind.LEASE_GRANT, lease_pb2.LeaseGrantRequest(ttl=5).SerializeToString()), True),
        (Command(Kind.LEASE_KEEP_ALIVE, lease_pb2.LeaseKeepAliveRequest(id=5).SerializeToString()), False),
        (Command(Kind.COMPACT, b""), False),
    ],
)
def test_what_needs_space(command: Command, grows: bool) -> None:
    assert wire_grows(encode_command(command)) is grows


@pytest.fixture
def trio() -> Trio:
    return Trio.started(options=NodeOptions(stall=1_000))


def lead(trio: Trio, group: int = DEFAULT_GROUP) -> int:
    place = trio.leader(group)
    assert place is not None
    return place


def submit(trio: Trio, place: int, command: Command) -> object:
    machine = trio.machines[place]
    request = trio.node(place).submit(DEFAULT_GROUP, command, trio.time + 10_000)
    trio.until(lambda: request in machine.answers, "an answer")
    return machine.answers[request]


def test_a_node_short_of_space_leads_nothing_takes_deletions_only_and_says_so(trio: Trio) -> None:
    place = lead(trio)
    node = trio.node(place)
    node.space(Space.LOW, "1 MiB is free")
    trio.run(1_500)
    assert all(trio.leader(group) != place for group in (1, 2, 3))
    with pytest.raises(NoSpace):
        node.submit(DEFAULT_GROUP, PUT, trio.time + 1_000)
    assert isinstance(submit(trio, place, DELETE), Answer)
    assert isinstance(submit(trio, (place + 1) % 3, PUT), Answer)
    node.submit(META_GROUP, PUT, trio.time + 1_000)  # what runs the cluster goes through
    assert node.alarms() == [f"{node.identity.name}: 1 MiB is free"]
    node.space(Space.PLENTY, "")
    assert node.alarms() == []
    assert isinstance(submit(trio, place, PUT), Answer)


def test_a_node_at_its_last_space_appends_only_what_needs_none_and_catches_up_later(trio: Trio) -> None:
    leader = lead(trio)
    full = (leader + 1) % 3
    trio.node(full).space(Space.CRITICAL, "none")
    assert isinstance(submit(trio, leader, DELETE), Answer)
    trio.run(500)
    index = trio.node(full).host.replicas[DEFAULT_GROUP].raft.last_index
    assert index == trio.node(leader).host.replicas[DEFAULT_GROUP].raft.last_index
    assert isinstance(submit(trio, leader, PUT), Answer)
    trio.run(2_000)
    assert trio.node(full).host.replicas[DEFAULT_GROUP].raft.last_index == index
    assert trio.leader(DEFAULT_GROUP) == leader, "it stays a quiet member"
    trio.node(full).space(Space.PLENTY, "")
    trio.run(2_000)
    assert trio.node(full).groups[DEFAULT_GROUP].store.get(b"k") is not None


def test_a_read_that_needs_what_a_full_node_does_not_take_is_refused_at_once(trio: Trio) -> None:
    """It waited for its deadline, in each new client; of meta, too, where a keyspace was made meanwhile."""
    leader = lead(trio)
    full = trio.node((leader + 1) % 3)
    outcomes: list[object] = []

    def ask() -> object:
        full.ask(DEFAULT_GROUP, 10_000, outcomes.append)
        trio.run(400)
        return outcomes.pop() if outcomes else "no answer"

    full.space(Space.CRITICAL, "none")
    assert ask() is None, "it has all that there is"
    assert isinstance(submit(trio, leader, DELETE), Answer)
    assert ask() is None, "it takes what needs no space"
    assert isinstance(submit(trio, leader, PUT), Answer)
    error = ask()
    assert isinstance(error, Unavailable)
    assert "ask another node" in error.message
    full.space(Space.PLENTY, "")
    trio.run(2_000)
    assert ask() is None


def test_a_write_is_refused_by_a_full_node_that_could_not_answer_it(trio: Trio) -> None:
    """A deletion through it was done at the leader, and ended unknown: what is missing here is never applied here."""
    leader = lead(trio)
    full = (leader + 1) % 3
    trio.node(full).space(Space.CRITICAL, "none")
    assert isinstance(submit(trio, full, DELETE), Answer)
    assert isinstance(submit(trio, leader, PUT), Answer)
    with pytest.raises(Unavailable, match="missing here: ask another node"):
        trio.node(full).submit(DEFAULT_GROUP, DELETE, trio.time + 1_000)
    trio.node(full).space(Space.PLENTY, "")
    trio.run(2_000)
    trio.node(full).space(Space.CRITICAL, "none")
    assert isinstance(submit(trio, full, DELETE), Answer), "it has all that there is"


def test_where_most_disks_are_full_what_was_on_its_way_goes_through_and_deletions_behind_it(trio: Trio) -> None:
    """It was dropped by both, and nothing behind it could be committed: no room could be made."""
    leader = lead(trio)
    full = [place for place in range(3) if place != leader]
    for place in full:
        trio.node(place).space(Space.CRITICAL, "none")
    trio.run(100)
    for peer in trio.node(leader).host.peers.values():
        peer.status = 0  # as it was a moment ago, when the put came
    assert isinstance(submit(trio, leader, PUT), Answer)
    for place in range(3):
        assert isinstance(submit(trio, place, DELETE), Answer)


def test_what_a_full_node_did_not_take_of_a_leader_that_is_gone_is_no_lack(trio: Trio) -> None:
    """It went on refusing all writes, also when it led: no later leader has those entries."""
    leader = lead(trio)
    full, other = (place for place in range(3) if place != leader)
    trio.node(full).space(Space.CRITICAL, "none")
    trio.hung.add(other)
    for _ in range(3):
        trio.node(leader).submit(DEFAULT_GROUP, PUT, trio.time + 1_000)
        trio.run(50)
    trio.crash(leader)
    trio.hung.clear()
    trio.node(other).space(Space.LOW, "little")
    trio.until(lambda: trio.leader(DEFAULT_GROUP) is not None, "one of the others leads")
    for place in (full, other):
        assert isinstance(submit(trio, place, DELETE), Answer)


def test_metas_leader_plans_on_a_full_disk(trio: Trio) -> None:
    """It refused what is its own, for want of what an earlier leader had, and that ended the node."""
    leader = lead(trio, META_GROUP)
    full, leaving = (place for place in range(3) if place != leader)
    trio.drive(leader, lambda meta: remove_step(meta, trio.founding, trio.who[leaving].name, {11, 12, 13}))
    trio.crash(leaving)
    trio.node(full).space(Space.CRITICAL, "none")
    trio.run(25_000)
    trio.crash(leader)
    trio.start(leaving)
    trio.until(lambda: trio.leader(META_GROUP) is not None, "meta is led")
    trio.run(5_000)


def test_a_read_that_waits_already_when_the_space_ends_is_refused_too(trio: Trio) -> None:
    leader = lead(trio)
    full = trio.node((leader + 1) % 3)
    outcomes: list[object] = []
    full.space(Space.CRITICAL, "none")
    assert isinstance(submit(trio, leader, PUT), Answer)
    full.space(Space.PLENTY, "")
    full.ask(DEFAULT_GROUP, 10_000, outcomes.append)
    trio.settle()
    assert outcomes == [], "the leader hasn't sent the entry again yet"
    full.space(Space.CRITICAL, "none")
    trio.run(400)
    assert isinstance(outcomes[0], Unavailable)


def test_where_most_disks_are_full_a_leader_with_space_refuses_at_once(trio: Trio) -> None:
    leader = lead(trio)
    for place in {0, 1, 2} - {leader}:
        trio.node(place).space(Space.CRITICAL, "none")
    trio.run(500)
    with pytest.raises(NoSpace, match="most nodes"):
        trio.node(leader).submit(DEFAULT_GROUP, PUT, trio.time + 1_000)


def test_a_learners_full_disk_keeps_nobody_from_writing() -> None:
    trio = Trio.started(1)
    trio.drive(0, lambda meta: add_step(meta, "n2", "n2:2", 14, learner=True))
    place = trio.join("n2")
    trio.until(lambda: DEFAULT_GROUP in trio.node(place).host.replicas, "it has a replica")
    trio.run(2_000)
    trio.node(place).space(Space.CRITICAL, "0 MiB are free")
    trio.run(500)
    assert isinstance(submit(trio, 0, PUT), Answer)


def test_who_let_go_for_its_disks_sake_refuses_what_was_forwarded(trio: Trio) -> None:
    """Certainly not appended: the sender takes it to the next leader, and doesn't wait for a disk that hangs."""
    place = lead(trio)
    other = (place + 1) % 3
    trio.node(place).host.batches.limit = 20_000
    trio.unsynced.add(place)
    asked = []
    for number in range(60):
        command = Command(Kind.PUT, put_request(b"%d" % number, bytes(2_000)))
        asked.append(trio.node(other).submit(DEFAULT_GROUP, command, trio.time + 60_000))
        trio.run(50)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) not in (None, place), "another leads")
    trio.run(5_000)
    assert all(isinstance(trio.machines[other].answers.get(request), Answer) for request in asked)


def test_nobody_hands_leadership_to_another_one_short_of_space(trio: Trio) -> None:
    for place in range(3):
        trio.node(place).space(Space.LOW, "little")
    trio.run(500)
    before = [trio.leader(group) for group in (1, 2, 3)]
    terms = [trio.node(0).host.replicas[group].raft.term for group in (1, 2, 3)]
    trio.run(5_000)
    assert [trio.leader(group) for group in (1, 2, 3)] == before
    assert [trio.node(0).host.replicas[group].raft.term for group in (1, 2, 3)] == terms


def test_a_leader_whose_log_is_not_made_durable_any_more_leads_no_more() -> None:
    trio = Trio.started(options=NodeOptions(stall=1_000))
    place = lead(trio)
    trio.unsynced.add(place)
    trio.node(place).submit(DEFAULT_GROUP, PUT, trio.time + 60_000)
    trio.run(4_000)
    assert trio.node(place).host.disk.sync_age >= 1_000
    assert any("has not answered" in alarm for alarm in trio.node(place).alarms())
    assert all(trio.leader(group) != place for group in (1, 2, 3))
    trio.unsynced.clear()
    trio.run(3_000)
    assert trio.node(place).alarms() == []


def test_a_vote_goes_with_a_batch_that_is_full_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard state without entries doesn't wait behind a bulk load (S31)."""
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 0)
    box = Box(0, 3)
    box.host.poll()
    replica = box.replica
    box.host.batches.current(0).cut(GroupId(GROUP), 0, 0)  # another group's part, which fills it
    replica.raft.step(Message(MessageType.VOTE, 2, replica.id, 9, index=99, log_term=9))
    box.host._dirty[GROUP] = None
    assert replica.urgent
    output = box.host.poll()
    assert output.batch is not None
    assert [write.hard_state for write in output.batch.writes] == [HardState(9, 2, 1)]
    assert not replica.urgent


def test_a_disk_that_hangs_gathers_no_more_than_twice_its_bound_whoever_leads(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each leader bounds what it has on its way here, and there may be a thousand: it was 8 MiB for each of them."""
    monkeypatch.setattr(batches, "MAX_UNSYNCED_BYTES", 4 << 20)
    trio.crash(2)
    trio.start(2)
    trio.drive(0, lambda meta: create_step(meta, checked(Spec("many", Partitioning.HASH, 8))))
    trio.until(lambda: all(len(trio.node(place).host.replicas) == 11 for place in range(3)), "eight shards")
    trio.run(3_000)
    hung = trio.node(2).host
    led = {group: place for group in hung.replicas if group > 3 and (place := trio.leader(group)) in (0, 1)}
    trio.unsynced.add(2)
    for number in range(14):
        for group, place in led.items():
            put = Command(Kind.PUT, put_request(b"%d" % number, b"x" * 1_000_000))
            trio.node(place).submit(group, put, trio.time + 20_000)
        trio.run(200)
    assert hung.batches.limit < hung.unsynced_bytes <= 2 * batches.MAX_BATCH_BYTES + (8 << 20)
    trio.unsynced.clear()
    wanted = {group: trio.node(place).host.replicas[group].applied for group, place in led.items()}
    trio.until(lambda: all(hung.replicas[group].applied >= index for group, index in wanted.items()), "it has it all")

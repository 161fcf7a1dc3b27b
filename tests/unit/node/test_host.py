"""`Host` through its boundary: what becomes of a write between two nodes, and what bounds a turn (S3, S6, S16, S19)."""

from __future__ import annotations

import pytest

from nebuladb.errors import NotLeader, Outcome, UnknownOutcome
from nebuladb.kv.answer import Answer
from nebuladb.node import batches
from nebuladb.node import host as host_module
from nebuladb.node.frame import Address, HostMessageType
from nebuladb.node.host import EXPIRE_TICKS
from nebuladb.node.replica import MAX_ENTRIES_IN_FLIGHT
from nebuladb.node.tail import TailLimits
from nebuladb.raft import MessageType, StateRole
from tests.unit.node.boxes import CLUSTER, GROUP, Box, Boxes
from tests.unit.node.wire import decode_frame, encode_frame


def led() -> tuple[Boxes, Box, Box, Box]:
    """Three hosts; the first leads."""
    boxes = Boxes()
    boxes.elect(boxes.boxes[0])
    return boxes, *boxes.boxes  # type: ignore[return-value]


def test_a_follower_forwards_and_answers_from_its_own_apply() -> None:
    boxes, leader, follower, other = led()
    follower.put(1)
    boxes.settle()
    assert isinstance(follower.answers[1], Answer)
    assert [box.store.revision for box in boxes.boxes] == [2, 2, 2]
    assert not leader.answers
    assert not other.answers


def test_a_repeated_forward_is_proposed_once() -> None:
    boxes, leader, follower, _ = led()
    follower.put(1)
    boxes.collect(follower)
    boxes.flight *= 3
    boxes.settle()
    assert follower.outcome(1) == "Answer"
    assert leader.store.revision == 2


def test_a_refused_forward_is_proposed_again_and_once() -> None:
    boxes, former, follower, other = led()
    boxes.lose = lambda source, target: follower in (source, target)
    former.host.transfer_leadership(GROUP, other.node)
    boxes.settle()
    assert other.leads
    boxes.lose = lambda source, target: other in (source, target)  # the follower still believes in the former
    follower.put(1)
    boxes.settle()
    assert follower.outcome(1) == ""
    assert former.store.revision == 1
    boxes.lose = lambda source, target: False
    boxes.tick(count=10)
    assert follower.outcome(1) == "Answer"
    assert follower.store.revision == 2


def test_a_link_that_breaks_after_sending_leaves_the_outcome_unknown_and_the_late_reply_void() -> None:
    boxes, leader, follower, _ = led()
    follower.put(1)
    boxes.collect(follower)
    follower.host.peer_down(leader.node)
    boxes.settle()
    error = follower.answers[1]
    assert isinstance(error, UnknownOutcome)
    assert error.outcome is Outcome.UNKNOWN
    assert follower.store.revision == 2, "it took effect all the same"


def test_what_was_placed_and_overwritten_has_failed() -> None:
    boxes, former, follower, other = led()
    # The former leader appends the write and says where; but the entry reaches nobody.
    follower.put(1)
    boxes.collect(follower)
    boxes.deliver()
    former.hung = True
    replies = former.turn()
    address, envelopes = decode_frame(dict(replies)[follower.node])
    placed = [envelope for envelope in envelopes if envelope.message.type == HostMessageType.FORWARD_REPLY]
    assert [envelope.message.reject for envelope in placed] == [False]
    follower.host.receive(former.node, encode_frame(address.encode(), placed))
    boxes.lose = lambda source, target: former in (source, target)
    boxes.flight.clear()
    boxes.tick(follower, other, count=40)
    other.put(2)
    boxes.settle()
    error = follower.answers[1]
    assert isinstance(error, NotLeader)
    assert error.outcome is Outcome.FAILED
    assert follower.store.revision == 2, "only the other node's write"


def test_a_node_that_is_cut_off_refuses_what_never_left_it_long_before_the_deadline() -> None:
    """Its client may have other endpoints: they would have served it all the while."""
    boxes, former, follower, cut = led()
    boxes.lose = lambda source, target: cut in (source, target)
    boxes.tick(count=20)
    assert not cut.replica.raft.leader
    cut.put(1)
    boxes.tick(count=20)
    assert not cut.outcome(1), "an election takes as long"
    boxes.tick(count=40)
    assert cut.outcome(1) == "NoLeader"
    assert cut.answers[1].outcome is Outcome.FAILED  # type: ignore[union-attr]
    cut.put(2)
    boxes.tick(count=EXPIRE_TICKS)
    assert cut.outcome(2) == "NoLeader"
    boxes.lose = lambda source, target: False
    boxes.tick(count=60)
    cut.put(3)
    boxes.tick(count=4)
    assert [box.store.revision for box in (former, follower, cut)] == [2, 2, 2], "the third alone took effect"
    assert cut.outcome(3) == "Answer"


def test_a_leader_that_is_cut_off_refuses_what_it_has_not_proposed_and_doubts_the_rest() -> None:
    boxes, former, follower, other = led()
    boxes.lose = lambda source, target: former in (source, target)
    for number in range(MAX_ENTRIES_IN_FLIGHT + 1):
        former.put(number)
        boxes.settle()
    boxes.tick(count=80)
    assert [former.outcome(number) for number in range(MAX_ENTRIES_IN_FLIGHT + 1)] == ["", "", "NoLeader"]
    follower.put(10)
    boxes.settle()
    boxes.lose = lambda source, target: False
    boxes.tick(count=40)
    assert [former.outcome(number) for number in range(MAX_ENTRIES_IN_FLIGHT)] == ["NotLeader", "NotLeader"]
    assert other.store.revision == 2


def test_a_group_that_rested_is_as_patient_as_any_other() -> None:
    boxes, _, follower, _ = led()
    boxes.tick(count=400)
    assert follower.replica.raft.quiet
    follower.put(1)
    boxes.settle()
    boxes.tick()
    assert follower.outcome(1) == "Answer"


def test_a_frame_for_another_cluster_life_or_node_is_dropped() -> None:
    boxes, leader, follower, _ = led()
    follower.put(1)
    [(_, frame)] = follower.turn()
    address, envelopes = decode_frame(frame)
    wrong = [
        address._replace(cluster=CLUSTER + 1),
        address._replace(sender=99),
        address._replace(sender_incarnation=99),
        address._replace(receiver=99),
        address._replace(receiver_incarnation=99),
    ]
    for bad in wrong:
        leader.host.receive(follower.node, encode_frame(bad.encode(), envelopes))
    leader.host.receive(99, frame)
    leader.host.receive(follower.node, frame[:-1])
    boxes.settle()
    assert leader.store.revision == 1
    leader.host.receive(follower.node, frame)
    boxes.settle()
    assert leader.store.revision == 2


def test_a_message_under_another_nodes_replica_id_is_dropped() -> None:
    boxes, leader, follower, other = led()
    follower.put(1)
    [(_, frame)] = follower.turn()
    _, [envelope] = decode_frame(frame)
    address = Address(CLUSTER, other.node, other.incarnation, leader.node, leader.incarnation)
    leader.host.receive(other.node, encode_frame(address.encode(), [envelope]))
    boxes.settle()
    assert leader.store.revision == 1


def test_two_lives_of_a_node_give_their_forwards_different_numbers() -> None:
    """A forward of the old life may wait in the leader's queue while the new life's arrives. If both bore one number,
    the reply to the first would be taken for one to the second: a refusal would have it proposed twice, and a place
    that isn't its own would call it failed (S19)."""
    boxes, leader, follower, _ = led()
    numbers = []
    for request in (1, 2):
        boxes.restart(follower)
        boxes.flight.clear()
        leader.host.tick(boxes.time, boxes.time)
        leader.host.tick(boxes.time, boxes.time)
        boxes.collect(leader)
        boxes.deliver()
        follower.put(request)
        boxes.collect(follower)
        for _, _, frame in boxes.flight:
            numbers += [e.message.context for e in decode_frame(frame)[1] if e.message.type == HostMessageType.FORWARD]
    assert len(numbers) == 2
    assert numbers[0] != numbers[1]


def test_a_full_batch_leaves_the_rest_to_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = Boxes(count=1)
    [box] = boxes.boxes
    boxes.elect(box)
    box.put(1)
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", -1)
    box.host.create_group(9, (1, 1), b"row")
    first = box.host.poll()
    assert first.batch is not None
    assert not first.batch.writes
    assert first.more
    box.host.durable(first.batch.id)
    second = box.host.poll()
    assert second.batch is not None
    assert [write.group for write in second.batch.writes] == [GROUP]


def test_nothing_is_proposed_while_too_much_is_on_its_way_to_the_disk() -> None:
    boxes = Boxes(count=1)
    [box] = boxes.boxes
    boxes.elect(box)
    box.host.batches.limit = 1_000
    box.hung = True
    box.put(1, size=2_000)
    boxes.settle()
    written = box.log.last_batch
    box.put(2)
    boxes.settle()
    assert box.log.last_batch == written
    assert not box.answers
    box.hung = False
    boxes.settle()
    assert {box.outcome(1), box.outcome(2)} == {"Answer"}


def test_an_acknowledgement_waits_for_its_sync_and_for_no_turn() -> None:
    boxes, leader, follower, _ = led()
    follower.hung = True
    leader.put(1)
    boxes.settle()
    assert not follower.host.frames(), "what it speaks of isn't durable yet (S3)"
    follower.host.durable(follower.unsynced)
    [(node, frame)] = follower.host.frames()
    assert node == leader.node
    assert [envelope.message.type for envelope in decode_frame(frame)[1]] == [MessageType.APPEND_REPLY]
    assert not follower.host.frames()


def test_a_vote_leaves_only_when_it_is_durable() -> None:
    boxes = Boxes()
    candidate, voter, other = boxes.boxes
    voter.hung = True
    boxes.lose = lambda source, target: other in (source, target)
    boxes.tick(candidate, count=25)
    assert voter.replica.raft.vote == 1
    assert not candidate.leads
    voter.hung = False
    boxes.settle()
    assert candidate.leads


def test_the_log_is_cut_to_what_every_data_store_has_on_disk() -> None:
    boxes, leader, follower, other = led()
    for box in (leader, follower, other):
        box.host.tail_limits = TailLimits(cut_entries=5)
    for request in range(20):
        leader.put(request)
        boxes.settle()
    boxes.tick(count=4)
    assert leader.log_start == (1, 1), "nothing is durably applied yet"
    for box in (leader, follower):
        box.host.flushed({GROUP: box.store.index})
    boxes.tick(count=2 * host_module.CUT_TICKS)
    for box in (leader, follower):
        assert box.log_start[0] == box.store.index
    assert other.log_start == (1, 1)


def test_the_leader_keeps_what_a_silent_follower_lacks() -> None:
    boxes, leader, _, other = led()
    for box in boxes.boxes:
        box.host.tail_limits = TailLimits(cut_entries=5)
    matched = other.store.index
    boxes.lose = lambda source, target: other in (source, target)
    for request in range(20):
        leader.put(request)
        boxes.settle()
    leader.host.flushed({GROUP: leader.store.index})
    boxes.tick(count=4)
    assert leader.replica.log_start <= matched
    boxes.lose = lambda source, target: False
    boxes.tick(count=host_module.CUT_TICKS + 10)
    assert other.store.index == leader.store.index
    assert leader.replica.log_start == leader.store.index


def test_a_silent_follower_holds_the_log_back_by_a_tail_only() -> None:
    """Of entries or of bytes, whichever is shorter; then it is asked for as a snapshot (S6)."""
    for limits in (TailLimits(entries=8, cut_entries=5), TailLimits(size=1_000, cut_entries=5)):
        boxes, leader, follower, other = led()
        for box in boxes.boxes:
            box.host.tail_limits = limits
        boxes.lose = lambda source, target, other=other: other in (source, target)  # type: ignore[misc]
        boxes.tick(leader, follower, count=25)
        for request in range(1_000):
            leader.put(request, size=10)
            boxes.settle()
        for box in (leader, follower):
            box.host.flushed({GROUP: box.store.index})
        boxes.tick(leader, follower, count=2 * host_module.CUT_TICKS)
        for box in (leader, follower):
            assert 0 < box.store.index - box.log_start[0] < 600
        assert not leader.snapshots, "nobody is there to take one"
        boxes.lose = lambda source, target: False
        boxes.tick(count=10)
        assert leader.snapshots == [(GROUP, other.replica.id)]


def test_a_snapshot_on_its_way_holds_the_log() -> None:
    """Else it would be too old when it is in."""
    boxes, leader, follower, other = led()
    leader.host.tail_limits = TailLimits(entries=1, cut_entries=5)
    leader.host.held_logs[GROUP] = {other.replica.id: 2}
    boxes.lose = lambda source, target: other in (source, target)
    boxes.tick(leader, follower, count=25)
    for request in range(20):
        leader.put(request)
        boxes.settle()
    leader.host.flushed({GROUP: leader.store.index})
    boxes.settle()
    assert leader.log_start[0] == 1
    leader.host.held_logs.clear()
    leader.host.flushed({GROUP: leader.store.index})
    boxes.settle()
    assert leader.log_start[0] == leader.store.index - 1


def test_a_flush_is_asked_for_when_only_that_lets_the_log_be_cut() -> None:
    boxes, leader, _, _ = led()
    leader.host.tail_limits = TailLimits(entries=10, cut_entries=5)
    for request in range(20):
        leader.put(request)
        boxes.settle()
        assert not leader.host.flush_due
    boxes.tick(count=2 * host_module.CUT_TICKS)
    assert leader.host.flush_due


def test_leadership_is_handed_over_and_writes_go_on() -> None:
    boxes, leader, follower, _ = led()
    leader.host.transfer_leadership(GROUP, follower.node)
    leader.put(1)
    boxes.tick(count=4)
    assert follower.leads
    assert leader.outcome(1) == "Answer"


def test_a_linearizable_read_on_a_follower_sees_the_write_before_it() -> None:
    boxes, leader, follower, _ = led()
    leader.put(1)
    boxes.settle()
    follower.host.read(5, GROUP, 1 << 40)
    boxes.settle()
    assert follower.reads == {5: None}
    assert follower.store.revision == 2


def test_a_deposed_leader_confirms_no_read() -> None:
    boxes, former, follower, other = led()
    boxes.lose = lambda source, target: former in (source, target)
    boxes.tick(follower, other, count=40)
    former.host.read(5, GROUP, boxes.time + 1_000)
    boxes.settle()
    assert former.reads == {}
    boxes.tick(count=25)
    assert str(former.reads[5]).startswith("no leader")


def test_while_batches_are_on_their_way_to_the_disk_new_writes_gather_for_one() -> None:
    boxes, leader, follower, _ = led()
    leader.hung = True
    for request in range(1, batches.MAX_BATCHES_IN_FLIGHT + 1):
        leader.put(request)
        boxes.settle()
    last = leader.log.last_batch
    before = leader.replica.raft.last_index
    for request in range(10, 20):
        leader.put(request)
        boxes.settle()
    assert (leader.log.last_batch, leader.replica.raft.last_index) == (last, before)
    leader.hung = False
    boxes.settle()
    assert leader.replica.raft.last_index == before + 1, "all ten in one entry"
    assert {leader.outcome(request) for request in range(10, 20)} == {"Answer"}
    assert follower.store.revision == leader.store.revision


def test_all_groups_share_the_batch_that_gathers() -> None:
    """What gathers isn't on its way yet: else each batch would hold the writes of one group, and of a node's shards the
    busiest would keep all others waiting for ever."""
    [box] = Boxes(count=1).boxes
    groups = [GROUP, *box.more_groups(3)]
    for group in groups:
        while box.host.replicas[group].raft.role is not StateRole.LEADER:
            box.host.tick(0, 0)
            box.turn()
    while box.host.has_work:
        box.turn()
    for round_ in range(3):
        for number, group in enumerate(groups):
            box.put(10 * round_ + number, group=group)
        output = box.host.poll()
        assert output.batch is not None
        assert sorted(write.group for write in output.batch.writes) == groups
        box.log.write(output.batch, box.host.batches.durable)
        box.put(100 + round_)
        assert box.host.poll().batch is None, "that one is on its way"
        box.log.sync()
        box.host.durable(output.batch.id)


def test_a_disk_that_hangs_holds_nobody_up_for_long() -> None:
    boxes, leader, follower, _ = led()
    leader.hung = True
    for request in range(1, batches.MAX_BATCHES_IN_FLIGHT + 2):
        leader.put(request)
        boxes.settle()
    before = follower.store.revision
    boxes.tick(count=batches.HOLD_TICKS)
    boxes.settle()
    assert follower.store.revision == before + 1, "the others are a majority without the leader's disk"


def test_what_waits_for_a_hung_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new term isn't durable while the disk hangs, so each heartbeat's reply is held."""
    monkeypatch.setattr(batches, "MAX_HELD", 20)
    boxes, former, follower, other = led()
    follower.hung = True
    former.host.transfer_leadership(GROUP, other.node)
    boxes.settle()
    boxes.tick(former, other, count=200)
    assert other.leads
    assert max(len(batch.held) for batch in follower.host.batches._inflight) == 20
    follower.hung = False
    other.put(1)
    boxes.tick(count=10)
    assert follower.store.revision == 2

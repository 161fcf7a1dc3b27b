"""What a turn hands out, and when none is needed (a turn costs tens of microseconds, on each node)."""

from __future__ import annotations

import pytest

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.turn import Turn
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.node.boxes import Box, Boxes
from tests.unit.node.trio import TICK_MS, Trio

PUT = Command(Kind.PUT, kv_pb2.PutRequest(key=b"k", value=b"v").SerializeToString())


def alone() -> Trio:
    trio = Trio(1)
    trio.start()
    trio.run(6_000)
    assert trio.node(0).groups.keys() >= {DEFAULT_GROUP}
    return trio


def durable_turn(trio: Trio) -> Turn:
    """The turn that follows the sync of what the one before has written."""
    node = trio.node(0)
    written = node.turn().written
    node.log.sync()
    node.host.durable(written)
    return node.turn()


def test_who_waits_for_an_apply_is_answered_in_its_turn_and_no_other_turn_is_asked_for() -> None:
    trio = alone()
    node = trio.node(0)
    request = node.submit(DEFAULT_GROUP, PUT, trio.time + 1_000)
    turn = durable_turn(trio)
    assert turn.applied == 1
    assert isinstance(dict(turn.answers)[request], Answer)
    assert not turn.more
    assert not node.host.has_work


def test_another_turn_is_asked_for_while_entries_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebuladb.node.replica.MAX_ENTRY_COMMANDS", 1)
    monkeypatch.setattr("nebuladb.node.replica.MAX_SLICE_BYTES", 1)
    trio = alone()
    node = trio.node(0)
    requests = [node.submit(DEFAULT_GROUP, PUT, trio.time + 1_000) for _ in range(2)]
    turn = durable_turn(trio)
    assert [request for request, _ in turn.answers] == requests[:1]
    assert turn.more
    assert [request for request, _ in node.turn().answers] == requests[1:]


def test_another_turn_is_asked_for_by_what_a_read_of_the_nodes_own_proposes() -> None:
    """It waited for a tick, in each step of a change of members."""
    trio = alone()
    node, requests = trio.node(0), list[int]()
    node.ask(DEFAULT_GROUP, 1_000, lambda _: requests.append(node.submit(DEFAULT_GROUP, PUT, trio.time + 1_000)))
    turn = node.turn()
    assert requests
    assert turn.more
    assert [request for request, _ in durable_turn(trio).answers] == requests


def test_a_follower_with_nothing_to_do_needs_no_turn_for_a_tick() -> None:
    trio = Trio()
    trio.start()
    trio.run(4_000)
    follower = next(
        machine.node
        for machine in trio.machines
        if machine.node and not any(replica.raft.role == "leader" for replica in machine.node.host.replicas.values())
    )
    quiet = 0
    for _ in range(4):
        trio.time += TICK_MS
        follower.tick(trio.time, trio.time)
        quiet += not follower.host.stepped or not follower.host.has_work
        turn = follower.turn()
        assert not turn.written
        assert not turn.answers
    assert quiet >= 2  # the others have a frame that says that it lives
    follower.submit(DEFAULT_GROUP, PUT, trio.time + 1_000)
    assert follower.host.has_work


def has_work(box: Box) -> bool:
    return box.host.has_work


def test_an_acknowledgement_that_changes_nothing_asks_for_no_turn() -> None:
    boxes = Boxes()
    leader, near, far = boxes.boxes
    boxes.elect(leader)
    boxes.settle()
    leader.put(1)
    boxes.collect(leader)
    boxes.deliver()
    for follower in (near, far):
        boxes.collect(follower)
    boxes.collect(near)
    boxes.deliver()
    assert has_work(leader)  # a majority has it
    boxes.collect(leader)
    while has_work(leader):
        boxes.collect(leader)
    boxes.collect(far)
    (late,) = [frame for source, target, frame in boxes.flight if source is far and target is leader]
    leader.host.receive(far.node, late)
    assert leader.replica.raft.commit == leader.replica.applied == leader.replica.raft.last_index
    assert not has_work(leader)
    leader.put(2)
    assert has_work(leader)


def test_a_leaders_own_sync_asks_for_no_turn_before_another_has_the_entry() -> None:
    boxes = Boxes()
    leader = boxes.boxes[0]
    boxes.elect(leader)
    boxes.settle()
    leader.put(1)
    boxes.collect(leader)  # writes, sends, and syncs
    assert not has_work(leader)
    boxes.settle()
    assert 1 in leader.answers


def test_frames_leave_before_anything_is_written() -> None:
    trio = Trio()
    trio.start()
    trio.run(4_000)
    leader = next(
        machine.node
        for machine in trio.running
        if machine.node is not None and machine.node.host.replicas[DEFAULT_GROUP].raft.role == "leader"
    )
    before, seen = leader.log.last_batch, []
    leader.submit(DEFAULT_GROUP, PUT, trio.time + 1_000)
    turn = leader.turn(lambda frames: seen.append((len(frames), leader.log.last_batch)))
    assert seen == [(2, before)]
    assert len(turn.frames) == 2
    assert turn.written == leader.log.last_batch == before + 1

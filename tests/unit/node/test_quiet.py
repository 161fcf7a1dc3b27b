"""Idle groups fall quiet and wake for whatever happens, a leader's silence included (S11)."""

from __future__ import annotations

from functools import partial

import pytest

from nebuladb.errors import Corruption
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.host import SILENT_MS
from nebuladb.node.keyspaces import Spec, checked, create_step
from nebuladb.node.members import add_step
from nebuladb.raft import MessageType
from nebuladb.raft.message import REST
from nebuladb.shard import Partitioning
from tests.unit.node.trio import Trio
from tests.unit.node.wire import decode_frame, put_request

GROUPS = range(1, 10)


def quiet() -> Trio:
    """Three nodes with nine groups that all rest."""
    trio = Trio.started()
    trio.drive(0, partial(create_step, spec=checked(Spec("h", Partitioning.HASH, 6))))
    trio.until(lambda: all(trio.leader(group) is not None for group in GROUPS), "leaders")
    trio.until(lambda: resting(trio) == len(GROUPS) * 3, "all rest")
    trio.run(2_000)
    assert resting(trio) == len(GROUPS) * 3
    return trio


def resting(trio: Trio) -> int:
    return sum(r.raft.quiet for m in trio.running if m.node is not None for r in m.node.host.replicas.values())


def terms(trio: Trio) -> list[int]:
    return [trio.node(0).host.replicas[group].raft.term for group in GROUPS]


def put(trio: Trio, place: int, group: int) -> None:
    request = trio.node(place).submit(group, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 20_000)
    trio.until(lambda: request in trio.machines[place].answers, "an answer")


def test_idle_groups_exchange_nothing_and_change_nothing() -> None:
    trio = quiet()
    before = terms(trio)
    trio.sent.clear()
    trio.run(60_000)
    assert trio.sent == []
    assert terms(trio) == before
    assert all(not trio.node(place).host._awake for place in range(3))


@pytest.mark.parametrize("group", [2, 4])
def test_a_write_through_any_node_wakes_one_group_for_a_while(group: int) -> None:
    trio = quiet()
    for place in range(3):
        trio.sent.clear()
        put(trio, place, group)
        assert {envelope.group for envelope in trio.sent} == {group}
        trio.until(lambda: resting(trio) == len(GROUPS) * 3, "rest again")


def test_a_linearizable_read_at_a_follower_wakes_its_leader() -> None:
    trio = quiet()
    follower = next(place for place in range(3) if place != trio.leader(2))
    request = trio.node(follower).read(2, trio.time + 20_000)
    trio.until(lambda: request in trio.machines[follower].served, "the read")


def test_the_loss_of_a_node_wakes_every_group_that_it_led() -> None:
    trio = quiet()
    victim = trio.leader(4)
    assert victim is not None
    trio.crash(victim)
    trio.run(3_000)
    assert all(trio.leader(group) not in (None, victim) for group in GROUPS)


def test_so_does_its_silence_while_the_link_stands() -> None:
    trio = quiet()
    victim = trio.leader(4)
    assert victim is not None
    trio.hung = {victim}
    trio.run(SILENT_MS + 3_000)
    assert all(trio.leader(group) not in (None, victim) for group in GROUPS)
    trio.hung = set()
    trio.until(lambda: resting(trio) == len(GROUPS) * 3, "all agree and rest")


@pytest.mark.parametrize("apart", range(50, 2_000, 150))
def test_a_leader_that_loses_one_after_the_other_does_not_rest_alone(apart: int) -> None:
    """The second goes while the loss of the first has it awake, and it has heard from the second just now."""
    trio = quiet()
    leader = trio.leader(4)
    assert leader is not None
    for place in range(3):
        if place != leader:
            trio.crash(place)
            trio.run(apart)
    trio.run(4_000)
    assert [group for group in GROUPS if trio.leader(group) is not None] == []


def test_a_follower_that_comes_back_disturbs_nobody() -> None:
    trio = quiet()
    victim = next(place for place in range(1, 3) if place != trio.leader(1))
    led = [group for group in GROUPS if trio.leader(group) != victim]
    before = {group: trio.node(0).host.replicas[group].raft.term for group in led}
    trio.crash(victim)
    trio.run(5_000)
    trio.start(victim)
    trio.run(5_000)
    assert {group: trio.node(0).host.replicas[group].raft.term for group in led} == before


def rest_word(frame: bytes) -> bool:
    return any(e.message.type == MessageType.HEARTBEAT and e.message.hint == REST for e in decode_frame(frame)[1])


def lose_a_word(trio: Trio, group: int, *places: int) -> None:
    """A write to `group`, and then the first word to rest that goes to one of `places` is lost."""
    nodes = [trio.who[place].node for place in places]
    lost: list[bytes] = []

    def lose(sender: int, receiver: int, frame: bytes) -> bool:
        if receiver in nodes and rest_word(frame) and not lost:
            lost.append(frame)
            return True
        return False

    trio.lose = lose
    put(trio, 0, group)
    trio.until(lambda: bool(lost), "a word is lost")


def test_who_misses_the_word_asks_for_votes_and_gets_heartbeats() -> None:
    trio = quiet()
    before = terms(trio)
    lose_a_word(trio, 4, 0, 1, 2)
    trio.run(2_000)
    trio.until(lambda: resting(trio) == len(GROUPS) * 3, "rest in the end")
    assert terms(trio) == before


def test_a_word_that_comes_after_its_leader_was_lost_is_not_obeyed() -> None:
    trio = quiet()
    late: list[tuple[int, int, bytes]] = []

    def keep(sender: int, receiver: int, frame: bytes) -> bool:
        if rest_word(frame):
            late.append((sender, receiver, frame))
            return True
        return False

    trio.lose = keep
    put(trio, 0, 4)
    trio.until(lambda: len(late) == 2, "both followers were told")
    leader = trio.leader(4)
    assert leader is not None
    trio.crash(leader)
    for sender, receiver, frame in late:
        trio.node(receiver - 11).host.receive(sender, frame)
        assert trio.node(receiver - 11).host.replicas[4].raft.quiet
    trio.run(4_000)
    assert trio.leader(4) not in (None, leader)


@pytest.mark.parametrize("leads", [True, False])
def test_a_replica_that_loses_its_data_wakes_the_others(leads: bool) -> None:
    """It may not stand for election itself. They rest and believe in it, or its leader does."""
    trio = quiet()
    leader = trio.leader(4)
    assert leader is not None
    place = leader if leads else (leader + 1) % 3
    trio.node(place).damaged(4, Corruption("for the test"))
    trio.until(lambda: 4 in trio.node(place).host.replicas and trio.node(place).host.replicas[4].lost, "built anew")
    trio.until(lambda: not trio.node(place).host.replicas[4].lost, "a snapshot is in")
    for other in range(3):
        put(trio, other, 4)
        assert isinstance(list(trio.machines[other].answers.values())[-1], Answer)


def with_learner() -> tuple[Trio, int]:
    """Three members and a learner, all groups of which rest."""
    trio = Trio.started()
    trio.drive(0, lambda meta: add_step(meta, "n4", "n4:2", 14, learner=True))
    place = trio.join("n4")
    trio.until(lambda: resting(trio) == 12, "all rest")
    trio.run(5_000)
    assert resting(trio) == 12
    return trio, place


def knows_leaders(trio: Trio, place: int) -> bool:
    return all(replica.raft.leader for replica in trio.node(place).host.replicas.values())


def test_a_learner_that_stood_still_finds_its_leaders_again() -> None:
    trio, place = with_learner()
    trio.hung = {place}
    trio.run(3_000)
    trio.hung = set()
    trio.run(10_000)
    assert knows_leaders(trio, place)
    put(trio, place, 2)
    assert isinstance(list(trio.machines[place].answers.values())[-1], Answer)


def test_a_learner_that_misses_the_word_to_rest_wakes_its_leader() -> None:
    trio, place = with_learner()
    lose_a_word(trio, 2, place)
    trio.run(10_000)
    assert knows_leaders(trio, place)

"""Leadership transfer: thesis §3.10."""

from __future__ import annotations

import pytest

from nebuladb.errors import InvalidArgument, NotLeader
from nebuladb.raft import Configuration, Message, MessageType, StateRole
from nebuladb.raft.confchange import Change, ChangeType
from tests.unit.raft.harness import Network, Replica

T = MessageType


def established() -> Replica:
    leader = Replica(1)
    leader.lead()
    for sender in (2, 3):
        leader.step(Message(T.APPEND_REPLY, sender, 1, 1, index=1))
    leader.take()
    return leader


def transfer(leader: Replica, to: int) -> None:
    leader.raft.transfer_leadership(to)
    leader.turn()


def test_the_prior_leader_tells_a_caught_up_target_to_campaign_at_once() -> None:
    leader = established()
    transfer(leader, 2)
    assert [(m.type, m.receiver) for m in leader.take()] == [(T.TIMEOUT_NOW, 2)]


def test_the_prior_leader_first_brings_the_target_up_to_date() -> None:
    leader = established()
    leader.propose()
    transfer(leader, 2)
    assert leader.take(T.TIMEOUT_NOW) == []
    leader.step(Message(T.APPEND_REPLY, 3, 1, 1, index=2))
    assert leader.take(T.TIMEOUT_NOW) == []
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=2))
    assert [m.receiver for m in leader.take(T.TIMEOUT_NOW)] == [2]


def test_the_prior_leader_stops_accepting_proposals() -> None:
    leader = established()
    transfer(leader, 2)
    with pytest.raises(NotLeader):
        leader.propose()
    assert leader.raft.last_index == 1


def test_a_lost_timeout_now_is_sent_again_and_after_an_election_timeout_the_transfer_is_given_up() -> None:
    leader = established()
    transfer(leader, 2)
    leader.take()
    for _ in range(5):
        leader.tick(2)
        leader.step(Message(T.HEARTBEAT_REPLY, 3, 1, 1))
    assert len(leader.take(T.TIMEOUT_NOW)) == 4
    assert (leader.role(), leader.raft.transferee) == (StateRole.LEADER, 0)
    leader.propose()


def test_the_target_starts_an_election_without_pre_vote_that_others_let_through() -> None:
    target = Replica(2)
    target.step(Message(T.HEARTBEAT, 1, 2, 1))
    target.take()
    target.step(Message(T.TIMEOUT_NOW, 1, 2, 1))
    assert (target.role(), target.raft.term) == (StateRole.CANDIDATE, 2)
    assert {(m.type, m.hint) for m in target.take()} == {(T.VOTE, 1)}


def test_a_repeated_or_late_timeout_now_starts_nothing() -> None:
    target = Replica(2)
    target.step(Message(T.HEARTBEAT, 1, 2, 1))
    for _ in range(2):
        target.step(Message(T.TIMEOUT_NOW, 1, 2, 1))
    assert target.raft.term == 2


def test_a_learner_does_not_obey() -> None:
    learner = Replica(2, configuration=Configuration((1, 3), learners=(2,)))
    learner.step(Message(T.TIMEOUT_NOW, 1, 2, 1))
    assert learner.role() is StateRole.FOLLOWER


@pytest.mark.parametrize("to", [1, 9])
def test_a_target_that_cannot_lead_is_refused(to: int) -> None:
    with pytest.raises(InvalidArgument):
        established().raft.transfer_leadership(to)


def test_only_a_leader_can_transfer() -> None:
    with pytest.raises(NotLeader):
        Replica(1).raft.transfer_leadership(2)


def test_leadership_moves_within_one_exchange_and_without_loss() -> None:
    network = Network.of(3)
    leader = network.elect(1)
    leader.propose(b"x")
    transfer(leader, 3)
    network.settle()
    assert [replica.role().value for replica in network.replicas.values()] == ["follower", "follower", "leader"]
    network[3].propose(b"y")
    network.settle()
    assert all(replica.payloads() == [b"x", b"y"] for replica in network.replicas.values())


def test_a_leader_that_is_asked_again_and_again_to_hand_over_misses_its_quorum_all_the_same() -> None:
    """Each request put off its look at who is still there: one who was cut off led on (seed 852)."""
    leader = established()
    for _ in range(8):
        if leader.role() is StateRole.LEADER:
            transfer(leader, 2)
            leader.tick(3)
    assert leader.role() is StateRole.FOLLOWER


def test_a_leader_that_is_asked_again_and_again_gives_up_all_the_same() -> None:
    """Each request for the same successor began its time anew: nothing was proposed as long as somebody asked."""
    leader = established()
    given_up = 0
    for _ in range(40):
        transfer(leader, 2)
        leader.tick()
        leader.step(Message(T.HEARTBEAT_REPLY, 3, 1, 1))
        given_up += not leader.raft.transferee
    assert given_up == 4
    transfer(leader, 2)
    leader.tick(9)
    transfer(leader, 3)
    leader.tick()
    assert leader.raft.transferee == 3, "another one has time of its own"


def test_a_joint_configuration_is_left_only_when_the_transfer_is_given_up() -> None:
    """The look at the quorum, which has another clock, left it amid the transfer: the successor was told to campaign
    with a log that was the shorter one by then."""
    leader = Replica(1, configuration=Configuration((1, 2, 4), (1, 2, 3), auto_leave=True))
    leader.lead()
    leader.tick(7)
    transfer(leader, 2)
    for sender in (2, 3, 4):
        leader.step(Message(T.APPEND_REPLY, sender, 1, 1, index=1))

    def tick() -> None:
        leader.tick()
        for sender in (2, 3, 4):
            leader.step(Message(T.HEARTBEAT_REPLY, sender, 1, 1))

    for _ in range(9):
        tick()
        assert (leader.raft.transferee, leader.raft.last_index) == (2, 1)
    for _ in range(10):
        tick()
    assert (leader.raft.transferee, leader.raft.last_index) == (0, 2)


def test_a_transfer_to_a_dead_replica_does_not_end_the_leaders_reign() -> None:
    network = Network.of(3)
    leader = network.elect(1)
    network.cut_off(3)
    transfer(leader, 3)
    network.tick(11)
    assert leader.role() is StateRole.LEADER
    leader.propose(b"x")
    network.settle()
    assert network[2].payloads() == [b"x"]


def test_a_target_that_is_removed_meanwhile_ends_the_transfer() -> None:
    """Its progress is gone: the next heartbeat looked at it, and the node stopped."""
    leader = established()
    change = leader.change(Change(ChangeType.REMOVE, 3))
    transfer(leader, 3)
    assert leader.raft.transferee == 3, "its log is too short still"
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=change))
    assert leader.raft.configuration.voters == (1, 2)
    assert leader.raft.transferee == 0
    leader.tick(2)
    leader.propose()


def test_a_target_that_stays_is_waited_for_whoever_else_goes() -> None:
    leader = established()
    change = leader.change(Change(ChangeType.REMOVE, 3))
    transfer(leader, 2)
    leader.take()
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=change))
    assert leader.raft.configuration.voters == (1, 2)
    assert leader.raft.transferee == 2
    assert {m.receiver for m in leader.take(T.TIMEOUT_NOW)} == {2}

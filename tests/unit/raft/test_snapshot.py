"""A follower behind the log's start: when a snapshot is asked for, and what comes after (paper §7)."""

from __future__ import annotations

import pytest

from nebuladb.raft import Message, MessageType
from nebuladb.raft.progress import ProgressState
from tests.unit.raft.harness import Network, Replica

T = MessageType


def behind() -> Network:
    """Replica 3 slept while the leader's log was cut."""
    network = Network.of(3)
    network.elect(1)
    network.tick(10)
    network.cut_off(3)
    network[1].propose_all([b"a", b"b", b"c", b"d"])
    network.settle()
    network.tick(12)
    leader = network[1]
    leader.disk.cut(4)
    leader.raft.cut(4)
    network.heal()
    network.tick(12)
    return network


def state(leader: Replica) -> ProgressState:
    return leader.raft._replication.tracker.progress[3].state


def test_a_snapshot_is_asked_for_once_and_no_entry_is_sent_meanwhile() -> None:
    network = behind()
    leader = network[1]
    assert leader.snapshots == [3]
    assert state(leader) is ProgressState.SNAPSHOT
    leader.propose(b"e")
    assert [m for m in leader.take(T.APPEND) if m.receiver == 3] == []
    network.tick(20)
    assert leader.snapshots == [3]


def install(network: Network) -> None:
    """What the caller does when the snapshot is in at follower 3: the replica starts anew behind it."""
    leader, follower = network[1], network[3]
    installed = Replica(3, disk=follower.disk, term=follower.raft.term)
    installed.disk.log, installed.disk.start_at = [], (5, 1)
    installed.applied = list(leader.applied[:5])
    installed.raft = installed._build(5)
    network.replicas[3] = installed
    leader.raft.snapshot_finished(3, 5)


def test_after_it_the_log_follows_from_there() -> None:
    network = behind()
    leader = network[1]
    install(network)
    network.settle()
    leader.propose(b"e")
    network.settle()
    network.tick(3)
    assert state(leader) is ProgressState.REPLICATE
    assert network[3].payloads() == leader.payloads()


@pytest.mark.parametrize("lost", [False, True])
def test_what_a_snapshot_brought_is_asked_for_also_if_nothing_follows_it(*, lost: bool) -> None:
    """Else a learner of an idle group is never known to have caught up, and never votes."""
    network = behind()
    leader = network[1]
    assert leader.raft.last_index == 5
    install(network)
    if lost:
        leader.take(T.APPEND)
        network.tick(12)
    network.settle()
    assert state(leader) is ProgressState.REPLICATE
    assert leader.raft.membership.lag(3) == 0


def test_a_failed_one_is_asked_for_again_after_the_next_sign_of_life() -> None:
    network = behind()
    leader = network[1]
    leader.raft.snapshot_finished(3, 0)
    leader.turn()
    assert leader.snapshots == [3], "not at once"
    network.tick(12)
    assert leader.snapshots == [3, 3]


def test_nobody_sends_one_to_a_peer_that_is_not_there() -> None:
    network = Network.of(3)
    network.cut_off(3)
    network.elect(1)
    network[1].propose_all([b"a", b"b"])
    network.settle()
    network[1].disk.cut(2)
    network[1].raft.cut(2)
    network.tick(40)
    assert network[1].snapshots == []


def test_late_news_of_a_snapshot_is_void() -> None:
    network = Network.of(3)
    leader = network.elect(1)
    network.tick(5)
    leader.raft.snapshot_finished(3, 0)
    leader.raft.snapshot_finished(9, 7)
    assert state(leader) is ProgressState.REPLICATE


def test_a_replica_that_catches_up_otherwise_needs_no_snapshot() -> None:
    network = behind()
    leader = network[1]
    leader.step(Message(T.APPEND_REPLY, 3, 1, leader.raft.term, index=leader.raft.last_index))
    assert state(leader) is ProgressState.REPLICATE

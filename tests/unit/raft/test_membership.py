"""Changes of members: thesis, chapter 4, by section; S4 and S13."""

from __future__ import annotations

import random

import pytest

from nebuladb.errors import ChangeRefused, InvalidArgument, NotLeader
from nebuladb.raft import Config, Configuration, EntryKind, Message, MessageType, StateRole
from nebuladb.raft.confchange import Change, ChangeType
from nebuladb.raft.entry import encode_entry
from tests.unit.raft.harness import Disk, Network, Replica, log_of
from tests.unit.raft.test_random import Oracle
from tests.unit.raft.test_snapshot import behind

T = MessageType
ROUND = 30
"""Ticks in which a learner that hears everything certainly catches up."""


def learner(replica: int) -> Change:
    return Change(ChangeType.ADD_LEARNER, replica)


def voter(replica: int) -> Change:
    return Change(ChangeType.ADD_VOTER, replica)


def gone(replica: int) -> Change:
    return Change(ChangeType.REMOVE, replica)


def grown(network: Network, replica: int) -> Replica:
    """Join an empty replica that knows the voters it is told of, as a learner."""
    joined = Replica(replica, tuple(sorted(network.replicas)))
    network.replicas[replica] = joined
    return joined


def led(count: int = 3) -> Network:
    network = Network.of(count)
    network.elect(1)
    network.tick(ROUND)
    return network


def with_learner(count: int = 3) -> Network:
    network = led(count)
    grown(network, count + 1)
    network[1].change(learner(count + 1))
    network.settle()
    network.tick(ROUND)
    return network


# 4.1: safety. One change at a time, by overlapping majorities, and in force where it is applied.


def test_a_configuration_is_in_force_when_it_is_applied_on_every_replica() -> None:
    network = with_learner()
    expected = Configuration((1, 2, 3), (), (4,))
    assert [one.raft.configuration for one in network.replicas.values()] == [expected] * 4


def test_a_change_of_one_voter_needs_no_joint_configuration() -> None:
    network = with_learner()
    network[1].change(voter(4))
    network.settle()
    changes = [one for one in network[2].applied if one.kind == EntryKind.CONFIGURATION]
    assert [Configuration.decode(one.payload) for one in changes] == [
        Configuration((1, 2, 3), (), (4,)),
        Configuration((1, 2, 3, 4)),
    ]


def test_one_change_at_a_time() -> None:
    leader = led()[1]
    leader.raft.propose_change([learner(4)])
    with pytest.raises(ChangeRefused, match="not applied"):
        leader.raft.propose_change([learner(5)])


def test_a_new_leader_changes_nothing_before_its_own_no_op_is_applied() -> None:
    """S4, and the flaw that Ongaro found in single-server changes in 2015."""
    leader = Replica(1, (1, 2, 3, 4))
    leader.lead()
    with pytest.raises(ChangeRefused, match="not applied"):
        leader.raft.propose_change([gone(4)])


def test_nobody_campaigns_with_a_committed_configuration_that_it_has_not_applied() -> None:
    """S4: the majority that it would count by may not be the group's any more."""
    target = Configuration((1, 2, 3, 4))
    entries = [*log_of(1), encode_entry(2, 1, EntryKind.CONFIGURATION, target.encode())]
    replica = Replica(1, term=1, commit=2, log=entries)
    replica.raft.campaign()
    assert replica.raft.role is StateRole.FOLLOWER
    replica.step(Message(T.TIMEOUT_NOW, 2, 1, 1))
    assert replica.raft.configuration == target, "the turn applied it"
    replica.campaign()
    assert {message.receiver for message in replica.take(T.PRE_VOTE)} == {2, 3, 4}


def test_a_configuration_that_was_overwritten_holds_nobody_back() -> None:
    target = Configuration((1, 2, 3, 4))
    replica = Replica(1, auto=False, term=1)
    replica.step(
        Message(T.APPEND, 2, 1, 1, entries=[*log_of(1), encode_entry(2, 1, EntryKind.CONFIGURATION, target.encode())])
    )
    replica.step(
        Message(T.APPEND, 3, 1, 2, index=1, log_term=1, entries=[encode_entry(2, 2, EntryKind.NORMAL, b"x")], commit=2)
    )
    assert replica.raft.commit == 2
    replica.campaign()
    assert replica.raft.role is StateRole.PRE_CANDIDATE


def test_what_nobody_applied_is_found_again_after_a_restart() -> None:
    target = Configuration((1, 2, 3, 4))
    many = log_of(*[1] * 40)
    entries = [*many, encode_entry(41, 1, EntryKind.CONFIGURATION, target.encode())]
    replica = Replica(1, auto=False, term=1, commit=41, log=entries)
    replica.raft.campaign()
    assert replica.raft.role is StateRole.FOLLOWER


def test_committed_entries_end_at_a_configuration() -> None:
    target = Configuration((1, 2, 3, 4))
    log = [*log_of(1), encode_entry(2, 1, EntryKind.CONFIGURATION, target.encode()), encode_entry(3, 1, 0, b"after")]
    raft = Replica(1, term=1, commit=3, log=log, auto=False).raft
    assert [one.index for one in raft.committed_entries(0, 1 << 20)] == [1, 2]
    assert [one.index for one in raft.committed_entries(2, 1 << 20)] == [3]


# 4.2.1: catching up.


def test_a_learner_gets_the_log_and_counts_for_no_majority() -> None:
    network = with_learner()
    network.cut_off(2, 3)
    network[1].propose(b"lonely")
    network.settle()
    assert network[4].raft.last_index == network[1].raft.last_index
    assert network[1].raft.commit < network[1].raft.last_index


def test_a_learner_neither_campaigns_nor_succeeds() -> None:
    network = with_learner()
    network.cut_off(1, 2, 3)
    for _ in range(100):
        network[4].tick()
    assert (network[4].raft.role, network[4].raft.term) == (StateRole.FOLLOWER, network[1].raft.term)
    network.heal()
    network.tick(3)
    with pytest.raises(InvalidArgument):
        network[1].raft.transfer_leadership(4)


def test_only_a_learner_that_has_caught_up_becomes_a_voter() -> None:
    network = led()
    with pytest.raises(ChangeRefused, match="no learner"):
        network[1].change(voter(4))
    grown(network, 4)
    network.cut_off(4)
    network[1].change(learner(4))
    network.settle()
    network.tick(ROUND)
    with pytest.raises(ChangeRefused, match="not caught up"):
        network[1].change(voter(4))
    network.heal()
    network.tick(ROUND)
    network[1].change(voter(4))
    network.settle()
    assert network[4].raft.configuration.voters == (1, 2, 3, 4)


def test_a_learner_that_fell_behind_again_has_not_caught_up() -> None:
    network = with_learner()
    assert network[1].raft.membership.lag(4) == 0
    network.cut_off(4)
    network[1].propose()
    network.settle()
    network.tick(ROUND)
    with pytest.raises(ChangeRefused, match="lacks 1 entries"):
        network[1].change(voter(4))


def test_a_learner_that_is_away_becomes_no_voter_though_it_lacks_nothing() -> None:
    """Of three voters and it, one more could be lost no longer."""
    network = with_learner()
    network.cut_off(4)
    network.tick(ROUND)
    assert network[1].raft.membership.lag(4) == 0
    assert not network[1].raft.membership.caught_up(4)
    with pytest.raises(ChangeRefused, match="not heard from"):
        network[1].change(voter(4))
    network.heal()
    network.tick(ROUND)
    network[1].change(voter(4))


# 4.2.2: removing the leader.


def test_a_leader_that_is_removed_leads_until_that_is_committed() -> None:
    network = led()
    network[1].change(gone(1))
    assert network[1].role() is StateRole.LEADER
    network.settle()
    assert network[1].role() is StateRole.FOLLOWER
    network.tick(ROUND)
    leaders = [one for one in network.replicas.values() if one.raft.role is StateRole.LEADER]
    assert len(leaders) == 1
    assert leaders[0].raft.configuration == Configuration((2, 3))
    leaders[0].propose(b"on")
    network.settle()
    assert network[2].payloads()[-1] == network[3].payloads()[-1] == b"on"


def test_a_removed_replica_never_campaigns() -> None:
    network = led()
    network[1].change(gone(3))
    network.settle()
    term = network[1].raft.term
    network.cut_off(3)
    network.tick(100)
    assert (network[3].raft.role, network[3].raft.term) == (StateRole.FOLLOWER, term)


# 4.2.3: disruptive servers.


def test_a_replica_that_does_not_know_that_it_was_removed_disturbs_nobody() -> None:
    network = led()
    network.cut_off(3)
    network[1].change(gone(3))
    network.settle()
    term = network[1].raft.term
    network.tick(40)
    network.heal()
    network.tick(40)
    assert (network[1].raft.role, network[1].raft.term) == (StateRole.LEADER, term)


# 4.2.4, 4.3: availability; joint consensus.


def test_a_dead_voter_is_replaced_in_one_change_by_way_of_a_joint_configuration() -> None:
    network = with_learner()
    network.cut_off(3)
    network.tick(ROUND)
    network[1].change(gone(3), voter(4))
    network.settle()
    changes = [Configuration.decode(one.payload) for one in network[1].applied if one.kind == EntryKind.CONFIGURATION]
    assert changes[1:] == [
        Configuration((1, 2, 4), (1, 2, 3), auto_leave=True),
        Configuration((1, 2, 4)),
    ]
    assert network[4].raft.configuration == Configuration((1, 2, 4))


def test_a_joint_configuration_needs_both_majorities() -> None:
    joint = Configuration((1, 4, 5), (1, 2, 3))
    for half in ((2, 3), (4, 5)):
        network = Network(*(Replica(replica, configuration=joint) for replica in (1, 2, 3, 4, 5)))
        network.elect(1)
        network.cut_off(*half)
        index = network[1].propose()
        network.settle()
        assert network[1].raft.commit < index, f"without {half}"
        network.heal()
        network.tick(ROUND)
        assert network[1].raft.commit >= index


def test_a_new_leader_leaves_the_joint_configuration_of_the_one_before() -> None:
    joint = Configuration((1, 2, 4), (1, 2, 3), auto_leave=True)
    network = Network(*(Replica(replica, configuration=joint) for replica in (1, 2, 3, 4)))
    network.elect(2)
    network.settle()
    assert {one.raft.configuration for one in network.replicas.values()} == {Configuration((1, 2, 4))}


def test_a_joint_configuration_survives_a_restart_and_elects_by_both_halves() -> None:
    joint = Configuration((3, 4, 5), (1, 2, 3), auto_leave=True)
    replica = Replica(3, configuration=joint)
    replica.campaign()
    for sender in (4, 5):
        replica.step(Message(T.PRE_VOTE_REPLY, sender, 3, 1))
    assert replica.role() is StateRole.PRE_CANDIDATE, "a majority of the incoming half alone"
    replica.step(Message(T.PRE_VOTE_REPLY, 1, 3, 1))
    assert replica.role() is StateRole.CANDIDATE


def test_a_change_that_leaves_no_live_majority_is_refused() -> None:
    network = with_learner(3)
    network.cut_off(2)
    network.tick(ROUND)
    with pytest.raises(ChangeRefused, match=r"no live majority.*\[2\]"):
        network[1].change(gone(3), gone(4))


def test_a_change_waits_for_who_gets_a_snapshot_and_would_be_needed() -> None:
    """With 2 gone, 1 and 3 would commit nothing until it is in."""
    network = behind()
    with pytest.raises(ChangeRefused, match=r"no live majority.*\[3\]"):
        network[1].change(gone(2))
    network[1].change(gone(3))  # who isn't needed may be anywhere
    network.settle()
    assert network[1].raft.configuration == Configuration((1, 2))


def test_what_can_not_be_done_is_refused_and_nothing_is_appended() -> None:
    network = led()
    leader = network[1].raft
    last = leader.last_index
    for changes in ([gone(1), gone(2), gone(3)], [voter(1)], [gone(9)], []):
        with pytest.raises((ChangeRefused, InvalidArgument)):
            leader.propose_change(changes)
    with pytest.raises(NotLeader):
        network[2].raft.propose_change([gone(3)])
    leader.transfer_leadership(2)
    with pytest.raises(NotLeader):
        leader.propose_change([gone(3)])
    assert leader.last_index == last


def test_a_change_gets_through_when_writes_do_not() -> None:
    leader = Replica(1, config=Config(1, max_uncommitted_bytes=100))
    network = Network(leader, Replica(2), Replica(3))
    network.elect(1)
    network.tick(ROUND)
    leader.raft.propose(b"x" * 200)
    leader.raft.propose_change([learner(4)])


def test_a_smaller_quorum_commits_what_waited_for_a_larger_one() -> None:
    network = led(4)
    network[1].change(gone(4))
    network.settle()
    network.cut_off(3, 4)
    assert network[1].propose(b"two of three") == network[1].raft.last_index
    network.settle()
    assert network[1].raft.commit == network[1].raft.last_index


def test_one_grows_to_three_and_five_and_shrinks_to_three() -> None:
    network = led(1)
    for replica in (2, 3, 4, 5):
        grown(network, replica)
        network[1].change(learner(replica))
        network.settle()
        network.tick(ROUND)
        network[1].change(voter(replica))
        network.settle()
    assert network[5].raft.configuration.voters == (1, 2, 3, 4, 5)
    network[1].change(gone(1), gone(4))
    network.settle()
    network.tick(ROUND)
    assert network[2].raft.configuration == Configuration((2, 3, 5))


# Any schedule.


@pytest.mark.parametrize("seed", range(40))
def test_figure_3_holds_while_members_change_under_loss_and_partitions(seed: int) -> None:
    rng = random.Random(seed)
    network = Network.of(3, seed=seed)
    for replica in (4, 5):
        network.replicas[replica] = Replica(replica, (1, 2, 3), disk=Disk(), seed=seed)
    oracle = Oracle(network)
    changed = 0
    for _ in range(1200):
        one = network[rng.randrange(1, 6)]
        what = rng.random()
        if what < 0.03:
            cut = rng.sample(range(1, 6), rng.randrange(0, 3))
            network.drop = lambda m, c=cut: ((m.sender in c) != (m.receiver in c)) or rng.random() < 0.05  # type: ignore[misc]
        elif what < 0.05:
            one.crash()
        elif one.raft.role is StateRole.LEADER and what < 0.5:
            kinds = rng.sample((learner, voter, voter, gone, gone), rng.randrange(1, 3))
            try:
                one.change(*(kind(rng.randrange(1, 6)) for kind in kinds))
                changed += 1
            except (ChangeRefused, InvalidArgument, NotLeader):
                pass
        elif one.raft.role is StateRole.LEADER and not one.raft.transferee:
            one.propose(b"p%d" % rng.randrange(1 << 30))
        network.tick()
        oracle.check()
    network.heal()
    network.tick(200)
    oracle.check()
    leaders = [one for one in network.replicas.values() if one.raft.role is StateRole.LEADER]
    assert changed
    assert len(leaders) == 1
    members = leaders[0].raft.configuration.voters
    leaders[0].propose(b"last")
    network.tick(5)
    for member in members:
        assert network[member].payloads()[-1] == b"last"

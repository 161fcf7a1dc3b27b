"""Leader election: paper §5.1, §5.2, §5.4.1 and figure 2; thesis §4.2.3 (disruptive servers), §9.6 (pre-vote)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nebuladb.errors import ConfigurationError, InvariantViolation
from nebuladb.raft import Config, Configuration, Message, MessageType, StateRole
from tests.unit.raft.harness import Network, Replica, log_of

T = MessageType
PLAIN = Config(1, pre_vote=False)


def vote(sender: int, receiver: int, term: int, index: int = 0, log_term: int = 0, hint: int = 0) -> Message:
    return Message(T.VOTE, sender, receiver, term, log_term=log_term, index=index, hint=hint)


def pre_vote(sender: int, receiver: int, term: int, index: int = 0, log_term: int = 0) -> Message:
    return Message(T.PRE_VOTE, sender, receiver, term, log_term=log_term, index=index)


def heartbeat(sender: int, receiver: int, term: int) -> Message:
    return Message(T.HEARTBEAT, sender, receiver, term)


class TestTerms:
    """§5.1."""

    @pytest.mark.parametrize("kind", [T.APPEND, T.HEARTBEAT, T.VOTE, T.VOTE_REPLY, T.APPEND_REPLY, T.HEARTBEAT_REPLY])
    @pytest.mark.parametrize("role", list(StateRole))
    def test_a_server_that_sees_a_larger_term_updates_its_own_and_becomes_a_follower(
        self, kind: MessageType, role: StateRole
    ) -> None:
        replica = Replica(1, config=Config(1, pre_vote=role is StateRole.PRE_CANDIDATE))
        if role is StateRole.LEADER:
            replica.lead()
        elif role is not StateRole.FOLLOWER:
            replica.campaign()
        assert replica.role() is role
        term = replica.raft.term + 3
        # A leader ignores candidates while it has its quorum; hint 1 is a transfer.
        replica.step(Message(kind, 2, 1, term, hint=1))
        assert replica.role() is StateRole.FOLLOWER
        assert (replica.raft.term, replica.disk.hard_state.term) == (term, term)

    @pytest.mark.parametrize("kind", [T.APPEND, T.HEARTBEAT])
    def test_a_request_with_a_stale_term_is_rejected_and_told_the_term(self, kind: MessageType) -> None:
        replica = Replica(1, term=5)
        replica.step(Message(kind, 2, 1, 4))
        assert replica.raft.leader == 0
        (reply,) = replica.take()
        assert (reply.type, reply.term, reply.reject, reply.receiver) == (T.APPEND_REPLY, 5, True, 2)

    @pytest.mark.parametrize(("ask", "kind"), [(vote, T.VOTE_REPLY), (pre_vote, T.PRE_VOTE_REPLY)])
    def test_a_candidate_with_a_stale_term_is_rejected_and_told_the_term(self, ask: object, kind: MessageType) -> None:
        replica = Replica(1, term=5)
        replica.step(ask(2, 1, 4))  # type: ignore[operator]
        (reply,) = replica.take()
        assert (reply.type, reply.term, reply.reject) == (kind, 5, True)

    def test_answers_of_an_earlier_term_are_void(self) -> None:
        replica = Replica(1, term=4, config=PLAIN)
        replica.campaign()
        replica.step(Message(T.VOTE_REPLY, 2, 1, 4))
        assert replica.role() is StateRole.CANDIDATE

    def test_a_message_for_another_replica_changes_nothing(self) -> None:
        replica = Replica(1)
        replica.step(heartbeat(2, 3, 9))
        assert (replica.raft.term, replica.raft.leader, replica.take()) == (0, 0, [])


class TestElections:
    """§5.2 and figure 2, "Rules for servers"."""

    def test_servers_start_up_as_followers(self) -> None:
        assert Replica(1, term=7, vote=1).role() is StateRole.FOLLOWER

    def test_a_follower_that_hears_nothing_over_the_election_timeout_begins_an_election(self) -> None:
        replica = Replica(1, config=PLAIN)
        replica.tick(9)
        assert replica.role() is StateRole.FOLLOWER
        replica.tick(10)
        assert replica.role() is StateRole.CANDIDATE
        assert (replica.raft.term, replica.raft.vote) == (1, 1), "it increments its term and votes for itself"
        assert sorted(m.receiver for m in replica.take(T.VOTE)) == [2, 3], "and asks all the others"

    def test_heartbeats_maintain_authority(self) -> None:
        replica = Replica(1)
        for _ in range(50):
            replica.step(heartbeat(2, 1, 1))
            replica.tick(9)
        assert replica.role() is StateRole.FOLLOWER
        assert replica.raft.leader == 2

    def test_a_leader_sends_heartbeats_to_all_followers(self) -> None:
        replica = Replica(1)
        replica.lead()
        replica.tick(2)
        assert [m.receiver for m in replica.take(T.HEARTBEAT)] == [2, 3]

    @pytest.mark.parametrize(
        ("size", "grants", "refusals", "role"),
        [
            (3, 1, 0, StateRole.LEADER),
            (3, 0, 1, StateRole.CANDIDATE),
            (3, 0, 2, StateRole.FOLLOWER),
            (5, 1, 2, StateRole.CANDIDATE),
            (5, 2, 2, StateRole.LEADER),
            (5, 1, 3, StateRole.FOLLOWER),
            (4, 1, 0, StateRole.CANDIDATE),
            (4, 2, 0, StateRole.LEADER),
        ],
    )
    def test_a_candidate_wins_with_the_votes_of_a_majority(
        self, size: int, grants: int, refusals: int, role: StateRole
    ) -> None:
        replica = Replica(1, range(1, size + 1), config=PLAIN)
        replica.campaign()
        answers = [False] * grants + [True] * refusals
        for sender, reject in enumerate(answers, 2):
            for _ in range(2):  # a repeated answer counts once
                replica.step(Message(T.VOTE_REPLY, sender, 1, 1, reject=reject))
        assert replica.role() is role

    def test_the_vote_of_a_learner_does_not_count(self) -> None:
        replica = Replica(1, config=PLAIN, configuration=Configuration((1, 2, 3), learners=(4,)))
        replica.campaign()
        assert [m.receiver for m in replica.take()] == [2, 3]
        replica.step(Message(T.VOTE_REPLY, 4, 1, 1))
        assert replica.role() is StateRole.CANDIDATE

    def test_a_joint_configuration_needs_both_majorities(self) -> None:
        replica = Replica(1, config=PLAIN, configuration=Configuration((1, 2, 3), outgoing=(1, 4, 5)))
        replica.campaign()
        replica.step(Message(T.VOTE_REPLY, 2, 1, 1))
        assert replica.role() is StateRole.CANDIDATE
        replica.step(Message(T.VOTE_REPLY, 4, 1, 1))
        assert replica.role() is StateRole.LEADER

    def test_each_server_votes_for_at_most_one_candidate_in_a_term_first_come_first_served(self) -> None:
        replica = Replica(1)
        for _ in range(2):
            replica.step(vote(2, 1, 1))
            assert [m.reject for m in replica.take()] == [False], "the same candidate may ask again"
        replica.step(vote(3, 1, 1))
        assert [m.reject for m in replica.take()] == [True]
        assert replica.disk.hard_state == (1, 2, 0)

    def test_a_vote_survives_a_crash(self) -> None:
        replica = Replica(1)
        replica.step(vote(2, 1, 1))
        replica.crash()
        replica.step(vote(3, 1, 1))
        assert [m.reject for m in replica.take()] == [True]

    def test_a_candidate_that_hears_from_the_leader_of_its_term_follows_it(self) -> None:
        for kind in (T.APPEND, T.HEARTBEAT):
            replica = Replica(1, config=PLAIN)
            replica.campaign()
            replica.step(Message(kind, 2, 1, 1))
            assert (replica.role(), replica.raft.leader) == (StateRole.FOLLOWER, 2)

    def test_a_candidate_whose_election_times_out_starts_a_new_one(self) -> None:
        replica = Replica(1, config=PLAIN)
        replica.campaign()
        replica.tick(20)
        assert (replica.role(), replica.raft.term) == (StateRole.CANDIDATE, 2)

    def test_election_timeouts_are_random_and_never_below_the_least(self) -> None:
        waits = []
        for seed in range(60):
            replica = Replica(1, config=PLAIN, seed=seed)
            waits.append(0)
            while replica.role() is StateRole.FOLLOWER:
                replica.tick()
                waits[-1] += 1
        assert set(waits) == set(range(10, 20))

    def test_two_leaders_of_one_term_stop_the_node(self) -> None:
        leader = Replica(1)
        leader.lead()
        with pytest.raises(InvariantViolation, match="beside us"):
            leader.step(heartbeat(2, 1, leader.raft.term))
        follower = Replica(1)
        follower.step(heartbeat(2, 1, 1))
        with pytest.raises(InvariantViolation, match="both lead"):
            follower.step(heartbeat(3, 1, 1))

    @pytest.mark.parametrize(
        "configuration", [Configuration(), Configuration((2, 3)), Configuration((2, 3), learners=(1,))]
    )
    def test_who_has_no_vote_never_campaigns(self, configuration: Configuration) -> None:
        replica = Replica(1, configuration=configuration)
        replica.step(heartbeat(2, 1, 1))
        replica.take()
        replica.tick(60)
        replica.campaign()
        assert replica.role() is StateRole.FOLLOWER
        assert replica.raft.leader == 0, "but it notices that the leader is gone"
        asked = replica.take()
        assert {(message.type, message.term) for message in asked} <= {(T.PRE_VOTE, 1)}, "only to wake who may lead"
        assert {message.receiver for message in asked} == set(configuration.voters)
        for voter in configuration.voters:
            replica.step(Message(T.PRE_VOTE_REPLY, voter, 1, 1))
        assert (replica.role(), replica.take()) == (StateRole.FOLLOWER, [])

    def test_a_single_voter_elects_itself(self) -> None:
        replica = Replica(1, (1,))
        replica.tick(20)
        assert replica.role() is StateRole.LEADER
        assert replica.raft.commit == 1


class TestElectionRestriction:
    """§5.4.1."""

    @pytest.mark.parametrize(
        ("index", "log_term", "granted"),
        [
            (3, 2, True),  # as up to date
            (4, 2, True),  # of logs with the same last term the longer one is more up to date
            (2, 2, False),
            (1, 3, True),  # the later last term wins, whatever the length
            (9, 1, False),
        ],
    )
    @pytest.mark.parametrize("ask", [vote, pre_vote])
    def test_a_voter_denies_its_vote_if_its_own_log_is_more_up_to_date(
        self, ask: object, index: int, log_term: int, granted: bool
    ) -> None:
        replica = Replica(1, term=2, log=log_of(1, 2, 2))
        replica.step(ask(2, 1, 4, index=index, log_term=log_term))  # type: ignore[operator]
        assert [m.reject for m in replica.take()] == [not granted]

    def test_the_request_includes_information_about_the_candidates_log(self) -> None:
        for pre in (True, False):
            replica = Replica(1, term=2, log=log_of(1, 2, 2), config=Config(1, pre_vote=pre))
            replica.campaign()
            assert {(m.index, m.log_term, m.term) for m in replica.take()} == {(3, 2, 3)}


class TestPreVote:
    """Thesis §9.6."""

    def test_a_candidate_only_increments_its_term_if_a_majority_would_vote_for_it(self) -> None:
        replica = Replica(1, range(1, 6), term=3)
        replica.campaign()
        assert (replica.role(), replica.raft.term, replica.raft.vote) == (StateRole.PRE_CANDIDATE, 3, 0)
        assert {(m.type, m.term) for m in replica.take()} == {(T.PRE_VOTE, 4)}
        replica.step(Message(T.PRE_VOTE_REPLY, 2, 1, 4))
        assert replica.role() is StateRole.PRE_CANDIDATE
        replica.step(Message(T.PRE_VOTE_REPLY, 3, 1, 4))
        assert (replica.role(), replica.raft.term) == (StateRole.CANDIDATE, 4)
        assert {m.type for m in replica.take()} == {T.VOTE}

    def test_a_granted_pre_vote_changes_nothing_at_the_voter(self) -> None:
        replica = Replica(1, term=3)
        replica.step(pre_vote(2, 1, 4))
        (reply,) = replica.take()
        assert (reply.type, reply.term, reply.reject) == (T.PRE_VOTE_REPLY, 4, False)
        assert (replica.raft.term, replica.raft.vote, replica.disk.hard_state.term) == (3, 0, 3)
        replica.step(pre_vote(3, 1, 4))
        assert [m.reject for m in replica.take()] == [False], "it may grant any number of them"

    def test_a_refused_pre_candidate_stays_in_its_term(self) -> None:
        replica = Replica(1, term=3)
        replica.campaign()
        for sender in (2, 3):
            replica.step(Message(T.PRE_VOTE_REPLY, sender, 1, 3, reject=True))
        assert (replica.role(), replica.raft.term) == (StateRole.FOLLOWER, 3)

    def test_a_pre_candidate_learns_of_a_later_term(self) -> None:
        replica = Replica(1, term=3)
        replica.campaign()
        replica.step(Message(T.PRE_VOTE_REPLY, 2, 1, 7, reject=True))
        assert (replica.role(), replica.raft.term) == (StateRole.FOLLOWER, 7)

    def test_a_late_grant_of_an_earlier_campaign_is_void(self) -> None:
        replica = Replica(1, term=3)
        replica.campaign()
        replica.step(Message(T.PRE_VOTE_REPLY, 2, 1, 3))
        assert replica.role() is StateRole.PRE_CANDIDATE
        assert replica.raft.term == 3

    def test_a_replica_that_was_cut_off_does_not_disturb_the_leader_when_it_returns(self) -> None:
        network = Network.of(3)
        leader = network.elect(1)
        network.cut_off(3)
        network.tick(100)
        assert network[3].raft.term == 1
        network.heal()
        network.tick(30)
        assert (leader.role(), leader.raft.term) == (StateRole.LEADER, 1)
        assert network[3].raft.leader == 1

    def test_a_replica_that_is_alone_in_a_later_term_gets_back_into_the_group(self) -> None:
        # It ignores the leader's lower term, and the others ignore its votes; its answer makes the leader step down.
        network = Network.of(3)
        network.elect(1)
        network[3].raft.campaign(transfer=True)
        network[3].turn()
        network[3].take()
        network.tick(60)
        roles = [replica.role() for replica in network.replicas.values()]
        assert roles.count(StateRole.LEADER) == 1
        assert len({replica.raft.term for replica in network.replicas.values()}) == 1


class TestStickiness:
    """Thesis §4.2.3: "if a server receives a RequestVote request within the minimum election timeout of hearing from a
    current leader, it does not update its term or grant its vote"."""

    @pytest.mark.parametrize("ask", [vote, pre_vote])
    def test_a_vote_is_ignored_within_the_least_timeout_of_hearing_from_a_leader(self, ask: object) -> None:
        replica = Replica(1)
        replica.step(heartbeat(2, 1, 1))
        replica.take()
        replica.tick(9)
        replica.step(ask(3, 1, 5))  # type: ignore[operator]
        assert (replica.raft.term, replica.take()) == (1, [])

    def test_and_not_after_it(self) -> None:
        replica = next(one for one in (Replica(1, seed=seed) for seed in range(20)) if one.raft._election.timeout > 11)
        replica.step(heartbeat(2, 1, 1))
        replica.take()
        replica.tick(10)
        replica.step(vote(3, 1, 5))
        assert [m.reject for m in replica.take()] == [False]

    def test_a_leader_with_its_quorum_ignores_candidates(self) -> None:
        replica = Replica(1)
        replica.lead()
        replica.step(vote(3, 1, 5, index=9, log_term=4))
        assert (replica.role(), replica.take()) == (StateRole.LEADER, [])

    def test_a_transfer_is_let_through(self) -> None:
        replica = Replica(1)
        replica.step(heartbeat(2, 1, 1))
        replica.take()
        replica.step(vote(3, 1, 2, hint=1))
        assert [(m.type, m.reject) for m in replica.take()] == [(T.VOTE_REPLY, False)]

    def test_without_check_quorum_nobody_is_loyal(self) -> None:
        # Else a leader that lost its followers' ear could block every election for ever.
        replica = Replica(1, config=Config(1, check_quorum=False))
        replica.step(heartbeat(2, 1, 1))
        replica.take()
        replica.step(vote(3, 1, 2))
        assert [m.reject for m in replica.take()] == [False]


class TestLeases:
    """What a voter owes a leader that may read by its lease (thesis §6.4.1; S9)."""

    def heard(self, *, guards: bool = True) -> Replica:
        """A voter that has heard from leader 1 of term 1."""
        replica = Replica(2, config=Config(2, guards_leases=guards))
        replica.tick(10)
        replica.step(heartbeat(1, 2, 1))
        replica.take()
        return replica

    def test_who_answered_a_leader_votes_for_nobody_for_as_long_also_where_it_hears_of_a_later_term(self) -> None:
        """3 stood in term 2 while 1 was silent; its request takes its time, and 1 speaks again, to 2 alone. An answer
        of 3 to a request of 2's, from before, tells 2 the term: it has no leader then, but 1 may read by its lease."""
        replica = self.heard()
        replica.step(Message(T.PRE_VOTE_REPLY, 3, 2, 2, reject=True))
        assert (replica.raft.term, replica.raft.leader) == (2, 0)
        for ask in (vote(3, 2, 2), pre_vote(3, 2, 3), vote(3, 2, 3)):
            replica.step(ask)
            assert [reply.reject for reply in replica.take()] == [True]
        replica.tick(9)
        replica.step(vote(3, 2, 3))
        assert [reply.reject for reply in replica.take(T.VOTE_REPLY)] == [True]
        replica.tick()
        replica.step(vote(3, 2, 3))
        assert [reply.reject for reply in replica.take(T.VOTE_REPLY)] == [False]

    def test_nor_does_it_stand_itself(self) -> None:
        replica = self.heard()
        replica.step(Message(T.PRE_VOTE_REPLY, 3, 2, 2, reject=True))
        replica.campaign()
        assert replica.role() is StateRole.FOLLOWER
        replica.tick(10)
        replica.campaign()
        assert replica.role() is StateRole.PRE_CANDIDATE

    def test_who_votes_alone_waits_for_nobody(self) -> None:
        replica = Replica(1, (1,), config=Config(1, guards_leases=True))
        replica.campaign()
        assert replica.role() is StateRole.LEADER

    def test_a_leader_that_hands_over_has_given_its_lease_up(self) -> None:
        replica = self.heard()
        replica.step(vote(3, 2, 2, hint=1))
        assert [reply.reject for reply in replica.take()] == [False]

    def test_without_leases_a_later_term_frees_it(self) -> None:
        replica = self.heard(guards=False)
        replica.step(Message(T.PRE_VOTE_REPLY, 3, 2, 2, reject=True))
        replica.step(vote(3, 2, 2))
        assert [reply.reject for reply in replica.take()] == [False]


class TestCheckQuorum:
    """Thesis §6.2: "a leader steps down if an election timeout elapses without a successful round of heartbeats"."""

    def test_a_leader_without_its_quorum_steps_down(self) -> None:
        replica = Replica(1)
        replica.lead()
        replica.tick(9)
        assert replica.role() is StateRole.LEADER
        replica.tick(1)
        assert (replica.role(), replica.raft.leader, replica.raft.term) == (StateRole.FOLLOWER, 0, 1)

    def test_a_leader_that_hears_from_a_quorum_stays(self) -> None:
        replica = Replica(1)
        replica.lead()
        for _ in range(20):
            replica.tick(5)
            replica.step(Message(T.HEARTBEAT_REPLY, 2, 1, 1))
        assert replica.role() is StateRole.LEADER
        assert replica.raft.active_voters() == [2]

    def test_learners_are_no_quorum(self) -> None:
        replica = Replica(1, configuration=Configuration((1, 2, 3), learners=(4, 5)))
        replica.lead()
        for _ in range(6):
            replica.tick(5)
            for sender in (4, 5):
                replica.step(Message(T.HEARTBEAT_REPLY, sender, 1, 1))
        assert replica.role() is not StateRole.LEADER

    def test_it_can_be_switched_off(self) -> None:
        replica = Replica(1, config=Config(1, check_quorum=False))
        replica.lead()
        replica.tick(100)
        assert replica.role() is StateRole.LEADER


def test_a_cluster_elects_one_leader_by_itself_and_another_when_it_dies() -> None:
    network = Network.of(5)
    network.tick(60)
    (leader,) = [one for one in network.replicas.values() if one.role() is StateRole.LEADER]
    network.cut_off(leader.id)
    network.tick(60)
    leaders = [one for one in network.replicas.values() if one.role() is StateRole.LEADER]
    assert len(leaders) == 1
    assert leaders[0].id != leader.id


@pytest.mark.parametrize("wrong", [{"replica": 0}, {"heartbeat_ticks": 10}, {"max_append_bytes": 0}])
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        replace(Config(1), **wrong)  # type: ignore[arg-type]

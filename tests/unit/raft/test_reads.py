"""Linearizable reads: paper §8, thesis §6.4 (S7, S8)."""

from __future__ import annotations

from nebuladb.raft import Configuration, Message, MessageType, ReadState, StateRole
from nebuladb.raft.confchange import Change, ChangeType
from nebuladb.raft.reads import FAILED, MAX_RESENT_READS, MAX_WAITING_READS
from tests.unit.raft.harness import Network, Replica, log_of

T = MessageType


def established() -> Replica:
    """Replica 1 leads term 1 of three, with its no-op committed."""
    leader = Replica(1)
    leader.lead()
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=1))
    leader.take()
    return leader


def read(replica: Replica, context: int) -> None:
    replica.raft.read_index(7, context)
    replica.turn()


def confirm(leader: Replica, sender: int, context: int, term: int = 1) -> None:
    leader.step(Message(T.HEARTBEAT_REPLY, sender, 1, term, context=context))


class TestLeader:
    def test_a_leader_must_have_committed_an_entry_of_its_term_before_it_reads(self) -> None:
        # Else it may not know of what the former leader has committed and acknowledged.
        leader = Replica(1, term=1, log=log_of(1, 1))
        leader.lead()
        read(leader, 1)
        confirm(leader, 2, 1, term=2)
        assert leader.take(T.HEARTBEAT) == []
        leader.step(Message(T.APPEND_REPLY, 2, 1, 2, index=3))
        confirm(leader, 2, leader.take(T.HEARTBEAT)[0].context, term=2)
        assert leader.reads == [ReadState(7, 1, 3)]

    def test_it_saves_its_commit_index_and_hears_from_a_majority_before_it_answers(self) -> None:
        leader = established()
        read(leader, 1)
        (round_,) = {m.context for m in leader.take(T.HEARTBEAT)}
        assert leader.reads == []
        leader.propose()
        leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=2))
        confirm(leader, 3, round_)
        assert leader.reads == [ReadState(7, 1, 1)], "the index is the commit index of when the round began"

    def test_a_round_confirms_the_reads_of_its_turn_together(self) -> None:
        leader = established()
        for context in (1, 2, 3):
            leader.raft.read_index(7, context)
        leader.turn()
        beats = leader.take(T.HEARTBEAT)
        assert len(beats) == 2
        confirm(leader, 2, beats[0].context)
        assert [one.context for one in leader.reads] == [1, 2, 3]

    def test_a_read_that_comes_during_a_round_waits_for_the_next(self) -> None:
        """S8: the heartbeat must be sent after the read arrived."""
        leader = established()
        read(leader, 1)
        first = leader.take(T.HEARTBEAT)[0].context
        read(leader, 2)
        assert leader.take(T.HEARTBEAT) == [], "one round at a time"
        confirm(leader, 2, first)
        assert [one.context for one in leader.reads] == [1]
        second = leader.take(T.HEARTBEAT)[0].context
        assert second != first
        confirm(leader, 2, first)
        confirm(leader, 3, first)
        assert [one.context for one in leader.reads] == [1], "late and repeated replies are void"
        confirm(leader, 3, second)
        assert [one.context for one in leader.reads] == [1, 2]

    def test_a_heartbeat_without_context_confirms_nothing(self) -> None:
        leader = established()
        leader.tick(2)
        read(leader, 1)
        confirm(leader, 2, 0)
        assert leader.reads == []

    def test_lost_heartbeats_of_a_round_are_sent_again(self) -> None:
        leader = established()
        read(leader, 1)
        leader.take()
        leader.tick(2)
        (round_,) = {m.context for m in leader.take(T.HEARTBEAT)}
        confirm(leader, 2, round_)
        assert leader.reads == [ReadState(7, 1, 1)]

    def test_learners_and_strangers_confirm_nothing(self) -> None:
        leader = Replica(1, configuration=Configuration((1, 2, 3), learners=(4,)))
        leader.lead()
        leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=1))
        leader.take()
        read(leader, 1)
        round_ = leader.take(T.HEARTBEAT)[0].context
        confirm(leader, 4, round_)
        confirm(leader, 9, round_)
        assert leader.reads == []

    def test_a_joint_configuration_confirms_with_both_majorities(self) -> None:
        leader = Replica(1, configuration=Configuration((1, 2, 3), outgoing=(1, 4, 5)))
        leader.campaign()
        for kind in (T.PRE_VOTE_REPLY, T.VOTE_REPLY):
            for sender in (2, 4):
                leader.step(Message(kind, sender, 1, 1))
        for sender in (2, 4):
            leader.step(Message(T.APPEND_REPLY, sender, 1, 1, index=1))
        leader.take()
        read(leader, 1)
        round_ = leader.take(T.HEARTBEAT)[0].context
        confirm(leader, 2, round_)
        confirm(leader, 3, round_)
        assert leader.reads == []
        confirm(leader, 5, round_)
        assert len(leader.reads) == 1

    def test_a_lone_voter_answers_at_once_but_not_before_its_first_commit(self) -> None:
        alone = Replica(1, (1,), auto=False)
        alone.campaign()
        alone.flush_all()
        assert alone.role() is StateRole.LEADER
        read(alone, 1)
        alone.flush_all()
        assert alone.reads == [ReadState(7, 1, 1)]

    def test_reads_fail_when_leadership_is_lost(self) -> None:
        leader = established()
        read(leader, 1)
        read(leader, 2)
        leader.step(Message(T.APPEND, 2, 1, 2))
        assert leader.reads == [ReadState(7, 1, FAILED), ReadState(7, 2, FAILED)]
        leader.lead()
        leader.step(Message(T.APPEND_REPLY, 2, 1, 3, index=2))
        assert leader.take(T.HEARTBEAT) == [], "nothing of the former term is left"
        assert len(leader.reads) == 2

    def test_a_leader_that_lost_its_quorum_fails_its_reads(self) -> None:
        leader = established()
        read(leader, 1)
        leader.tick(20)
        assert leader.reads == [ReadState(7, 1, FAILED)]

    def test_waiting_reads_are_bounded(self) -> None:
        leader = established()
        read(leader, 0)
        for context in range(1, MAX_WAITING_READS + 2):
            leader.raft.read_index(7, context)
        leader.turn()
        assert leader.reads == [ReadState(7, MAX_WAITING_READS + 1, FAILED)]


class TestFollower:
    def follower(self) -> Replica:
        follower = Replica(1)
        follower.step(Message(T.HEARTBEAT, 2, 1, 1))
        follower.take()
        return follower

    def test_a_follower_asks_its_leader(self) -> None:
        follower = self.follower()
        read(follower, 5)
        (ask,) = follower.take()
        assert (ask.type, ask.receiver, ask.nonce, ask.context) == (T.READ_INDEX, 2, 7, 5)
        answer = Message(T.READ_INDEX_REPLY, 2, 1, 1, index=4, nonce=7, context=5)
        follower.step(answer)
        follower.step(answer)
        assert follower.reads == [ReadState(7, 5, 4)], "a repeated answer is void"

    def test_an_answer_to_another_process_is_void(self) -> None:
        follower = self.follower()
        read(follower, 5)
        follower.step(Message(T.READ_INDEX_REPLY, 2, 1, 1, index=4, nonce=8, context=5))
        assert follower.reads == []

    def test_it_asks_again_each_heartbeat_interval_until_it_is_answered(self) -> None:
        follower = self.follower()
        read(follower, 5)
        follower.take()
        follower.tick(4)
        assert [m.context for m in follower.take(T.READ_INDEX)] == [5, 5]
        follower.step(Message(T.READ_INDEX_REPLY, 2, 1, 1, index=4, nonce=7, context=5))
        follower.tick(4)
        assert follower.take(T.READ_INDEX) == []

    def test_what_it_asks_again_is_bounded_and_the_oldest_come_first(self) -> None:
        follower = self.follower()
        for context in range(MAX_WAITING_READS + 1):
            follower.raft.read_index(7, context)
        follower.turn()
        assert follower.reads == [ReadState(7, MAX_WAITING_READS, FAILED)]
        follower.take()
        follower.tick(2)
        assert [m.context for m in follower.take(T.READ_INDEX)] == list(range(MAX_RESENT_READS))

    def test_without_a_leader_a_read_fails_at_once(self) -> None:
        lost = Replica(1)
        read(lost, 5)
        assert lost.reads == [ReadState(7, 5, FAILED)]

    def test_reads_fail_when_the_term_or_the_leader_changes(self) -> None:
        follower = self.follower()
        read(follower, 5)
        follower.step(Message(T.HEARTBEAT, 3, 1, 2))
        assert follower.reads == [ReadState(7, 5, FAILED)]
        read(follower, 6)
        follower.campaign()
        assert follower.reads[1:] == [ReadState(7, 6, FAILED)]

    def test_who_does_not_lead_refuses_a_forwarded_read(self) -> None:
        follower = self.follower()
        follower.step(Message(T.READ_INDEX, 3, 1, 1, nonce=9, context=1))
        (answer,) = follower.take()
        assert (answer.type, answer.receiver, answer.reject, answer.nonce, answer.context) == (
            T.READ_INDEX_REPLY, 3, True, 9, 1,
        )  # fmt: skip

    def test_a_refused_read_fails(self) -> None:
        follower = self.follower()
        read(follower, 5)
        follower.step(Message(T.READ_INDEX_REPLY, 2, 1, 1, reject=True, nonce=7, context=5))
        assert follower.reads == [ReadState(7, 5, FAILED)]

    def test_the_leader_confirms_a_forwarded_read_like_its_own(self) -> None:
        leader = self.leader(Configuration((1, 2, 3, 4, 5)), 2, 4)
        for _ in range(2):  # it is asked again while it waits
            leader.raft.step(Message(T.READ_INDEX, 3, 1, 1, nonce=9, context=1))
        leader.turn()
        asked = leader.take()
        assert {m.type for m in asked} == {T.HEARTBEAT}
        confirm(leader, 2, asked[0].context)
        assert leader.take() == []
        confirm(leader, 4, asked[0].context)
        answers = leader.take(T.READ_INDEX_REPLY)
        assert [(m.receiver, m.nonce, m.context, m.index, m.reject) for m in answers] == [(3, 9, 1, 1, False)]

    def leader(self, configuration: Configuration, *others: int) -> Replica:
        """Replica 1 leads term 1, elected by `others`, who have its no-op."""
        leader = Replica(1, configuration=configuration)
        leader.campaign()
        for kind in (T.PRE_VOTE_REPLY, T.VOTE_REPLY):
            for sender in others:
                leader.step(Message(kind, sender, 1, 1))
        for sender in others:
            leader.step(Message(T.APPEND_REPLY, sender, 1, 1, index=1))
        leader.take()
        return leader

    def test_a_follower_that_asks_confirms_its_own_read_where_it_makes_a_majority(self) -> None:
        # It takes us for the leader of this term, and says so after the read came, as in a reply to a heartbeat (S8).
        leader = established()
        leader.step(Message(T.READ_INDEX, 3, 1, 1, nonce=9, context=1))
        (answer,) = leader.take()
        assert (answer.type, answer.receiver, answer.nonce, answer.context, answer.index, answer.reject) == (
            T.READ_INDEX_REPLY, 3, 9, 1, 1, False,
        )  # fmt: skip

    def test_it_does_not_before_the_terms_first_commit(self) -> None:
        leader = Replica(1, term=1, log=log_of(1, 1))
        leader.lead()
        leader.take()
        leader.step(Message(T.READ_INDEX, 3, 1, 2, nonce=9, context=1))
        assert leader.take() == []
        leader.step(Message(T.APPEND_REPLY, 2, 1, 2, index=3))
        confirm(leader, 2, leader.take(T.HEARTBEAT)[0].context, term=2)
        assert [m.index for m in leader.take(T.READ_INDEX_REPLY)] == [3]

    def test_nor_does_a_learner_nor_half_of_a_joint_configuration(self) -> None:
        for configuration, asks in (
            (Configuration((1, 2, 3), learners=(4,)), 4),
            (Configuration((1, 2, 3), outgoing=(1, 4, 5)), 2),
            (Configuration((1, 2, 3), outgoing=(1, 4, 5)), 9),
        ):
            leader = self.leader(configuration, 2, 4)
            leader.step(Message(T.READ_INDEX, asks, 1, 1, nonce=9, context=1))
            assert {m.type for m in leader.take()} == {T.HEARTBEAT}, (configuration, asks)

    def test_nor_does_one_that_asked_a_leader_of_a_term_gone_by(self) -> None:
        leader = established()
        leader.step(Message(T.APPEND, 2, 1, 2))
        leader.take()
        leader.step(Message(T.READ_INDEX, 3, 1, 1, nonce=9, context=1))
        assert [m.reject for m in leader.take(T.READ_INDEX_REPLY)] in ([], [True])


def test_a_deposed_leader_answers_no_read() -> None:
    network = Network.of(3)
    old = network.elect(1)
    network.cut_off(1)
    for replica in (2, 3):
        network[replica].tick(10)
        network[replica].take()
    new = network.elect(2)
    new.propose(b"newer")
    network.settle()
    read(old, 1)
    network.tick(5)
    assert all(one.index < 0 for one in old.reads)
    assert old.payloads() == []


def test_every_replica_reads_what_was_written() -> None:
    network = Network.of(3)
    network.elect(1).propose(b"x")
    network.settle()
    for replica in network.replicas.values():
        read(replica, 1)
        network.settle()
        (answer,) = replica.reads
        assert answer.index == 2


def test_a_round_ends_when_who_has_not_answered_decides_no_more() -> None:
    """Nobody is left to answer it, no other round begins while it runs, and no read of the group ever ended."""
    leader = Replica(1, (1, 2))
    leader.lead()
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=1))
    change = leader.change(Change(ChangeType.REMOVE, 2))
    read(leader, 1)
    assert leader.reads == [], "its majority is both"
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=change))
    assert leader.raft.configuration.voters == (1,)
    read(leader, 2)
    assert [one.context for one in leader.reads] == [1, 2]


def test_the_answer_to_a_read_that_failed_can_be_sent() -> None:
    """An index below 0 has no encoding: it ends the turn, and so the node."""
    leader = Replica(1, (1, 2, 3, 4, 5))
    leader.lead()
    for context in range(MAX_WAITING_READS + 1):
        leader.raft.step(Message(T.READ_INDEX, 3, 1, 1, nonce=9, context=context))
    leader.turn()
    assert [(m.reject, m.index) for m in leader.take(T.READ_INDEX_REPLY)] == [(True, 0)]

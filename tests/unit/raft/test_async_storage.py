"""Log writes beside replication: thesis §10.2.1; S1, S2, S3."""

from __future__ import annotations

from nebuladb.raft import DurableMark, HardState, Message, MessageType, Ready, StateRole
from tests.unit.raft.harness import BIG, Replica, entry, log_of

T = MessageType


def take(replica: Replica) -> Ready:
    ready = replica.raft.ready()
    assert ready is not None
    assert replica.raft.ready() is None
    return ready


def lazy_leader() -> Replica:
    """Replica 1 leads term 1; its no-op is written, and not durable."""
    leader = Replica(1)
    leader.lead()
    leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=1))
    leader.auto = False
    leader.take()
    return leader


class TestLeader:
    def test_the_leader_sends_an_entry_before_it_is_on_its_own_disk(self) -> None:
        leader = lazy_leader()
        leader.propose(b"x")
        assert [(m.receiver, m.entries[0].payload) for m in leader.take(T.APPEND)] == [(2, b"x")]
        assert leader.raft.durable_index == 1

    def test_it_counts_itself_only_once_its_own_disk_has_it(self) -> None:
        leader = lazy_leader()
        leader.propose(b"x")
        assert leader.raft.commit == 1
        leader.step(Message(T.APPEND_REPLY, 2, 1, 1, index=2))
        assert leader.raft.commit == 1, "one of three"
        leader.flush_all()
        assert leader.raft.commit == 2

    def test_an_entry_may_be_committed_before_the_leaders_own_disk_has_it_and_is_applied_only_after(self) -> None:
        """S1: it would be applied, the data flushed, the log lost: applied beyond the log."""
        leader = lazy_leader()
        leader.propose(b"x")
        for sender in (2, 3):
            leader.step(Message(T.APPEND_REPLY, sender, 1, 1, index=2))
        assert leader.raft.commit == 2
        assert leader.raft.committed_entries(1, BIG) == []
        leader.flush_all()
        assert leader.payloads() == [b"x"]

    def test_a_leader_whose_term_is_not_durable_holds_its_messages(self) -> None:
        # Can't come about by our own votes: they are asked for only once the term is durable. It is held all the same.
        leader = Replica(1, auto=False)
        leader.raft.campaign()
        leader.step(Message(T.PRE_VOTE_REPLY, 2, 1, 1))
        leader.take()
        for sender in (2, 3):
            leader.step(Message(T.VOTE_REPLY, sender, 1, 1))
        assert leader.role() is StateRole.LEADER
        assert leader.take(T.APPEND) == []
        leader.flush_all()
        assert len(leader.take(T.APPEND)) == 2


class TestVotes:
    def test_a_vote_leaves_after_the_batch_with_its_hard_state(self) -> None:
        replica = Replica(1)
        replica.raft.step(Message(T.VOTE, 2, 1, 3))
        ready = take(replica)
        assert ready.hard_state == HardState(3, 2, 0)
        assert ready.messages == []
        assert [m.type for m in ready.held] == [T.VOTE_REPLY]

    def test_a_vote_in_a_term_that_is_durable_already_is_made_durable_too(self) -> None:
        replica = Replica(1, term=3)
        replica.raft.step(Message(T.VOTE, 2, 1, 3))
        ready = take(replica)
        assert (ready.hard_state, ready.mark) == (HardState(3, 2, 0), DurableMark(3, 2, 0, 0))
        assert ready.messages == []
        assert [m.reject for m in ready.held] == [False]

    def test_a_vote_request_leaves_after_the_batch_with_the_term(self) -> None:
        replica = Replica(1)
        replica.raft.campaign(transfer=True)
        ready = take(replica)
        assert ready.hard_state == HardState(1, 1, 0)
        assert ready.messages == []
        assert {m.type for m in ready.held} == {T.VOTE}

    def test_a_pre_vote_needs_nothing_durable(self) -> None:
        replica = Replica(1, term=1)
        replica.raft.step(Message(T.PRE_VOTE, 2, 1, 2))
        ready = take(replica)
        assert (ready.hard_state, ready.held, len(ready.messages)) == (None, [], 1)
        replica.raft.campaign()
        ready = take(replica)
        assert (ready.hard_state, ready.held, len(ready.messages)) == (None, [], 2)

    def test_the_own_vote_counts_once_it_is_durable(self) -> None:
        alone = Replica(1, (1,), auto=False)
        alone.campaign()
        assert alone.role() is StateRole.CANDIDATE
        alone.flush_all()
        assert alone.role() is StateRole.LEADER

    def test_the_own_vote_of_an_earlier_term_does_not_count(self) -> None:
        alone = Replica(1, (1,), auto=False)
        alone.raft.campaign()
        first = take(alone)
        alone.raft.campaign()
        second = take(alone)
        assert first.mark is not None
        assert second.mark is not None
        alone.raft.durable(first.mark)
        assert (alone.role(), alone.raft.term) == (StateRole.CANDIDATE, 2)
        alone.raft.durable(second.mark)
        assert alone.role() is StateRole.LEADER


class TestFollower:
    def follower(self) -> Replica:
        follower = Replica(1, term=1)
        follower.step(Message(T.HEARTBEAT, 2, 1, 1))
        follower.take()
        return follower

    def test_an_acknowledgement_leaves_after_the_batch_with_the_entries(self) -> None:
        follower = self.follower()
        append = Message(T.APPEND, 2, 1, 1, entries=log_of(1, 1))
        follower.raft.step(append)
        ready = take(follower)
        assert ready.messages == []
        assert [(m.type, m.index) for m in ready.held] == [(T.APPEND_REPLY, 2)]
        assert ready.hard_state == HardState(1, 0, 0)
        assert ready.mark == DurableMark(1, 0, 2, 1)
        follower.raft.step(append)
        ready = take(follower)
        assert (ready.mark, ready.messages) == (None, []), "again: nothing to write, and still held behind that batch"
        assert [m.index for m in ready.held] == [2]

    def test_a_rejection_is_held_too(self) -> None:
        follower = self.follower()
        follower.raft.step(Message(T.APPEND, 2, 1, 1, index=4, log_term=1))
        assert [m.reject for m in take(follower).held] == [True]

    def test_a_heartbeat_is_answered_at_once_if_the_term_is_durable(self) -> None:
        follower = self.follower()
        follower.raft.step(Message(T.HEARTBEAT, 2, 1, 1))
        assert [m.type for m in take(follower).messages] == [T.HEARTBEAT_REPLY]

    def test_and_else_after_it_is(self) -> None:
        follower = self.follower()
        follower.raft.step(Message(T.HEARTBEAT, 2, 1, 2))
        ready = take(follower)
        assert ready.messages == []
        assert [m.type for m in ready.held] == [T.HEARTBEAT_REPLY]

    def test_a_commit_index_alone_is_not_persisted(self) -> None:
        follower = self.follower()
        follower.step(Message(T.APPEND, 2, 1, 1, entries=log_of(1)))
        follower.raft.step(Message(T.HEARTBEAT, 2, 1, 1, commit=1))
        ready = take(follower)
        assert follower.raft.commit == 1
        assert (ready.hard_state, ready.entries, ready.mark) == (None, [], None)
        follower.raft.step(Message(T.APPEND, 2, 1, 1, index=1, log_term=1, entries=log_of(1, 1)[1:]))
        assert take(follower).hard_state == HardState(1, 0, 1), "but it goes with the next batch"

    def test_nothing_to_do_is_no_ready(self) -> None:
        assert Replica(1).raft.ready() is None


class TestMarks:
    """S2."""

    def append(self, replica: Replica, term: int, index: int, log_term: int, *terms: int) -> Ready:
        entries = [entry(index + 1 + i, one) for i, one in enumerate(terms)]
        message = Message(T.APPEND, term, 1, term, index=index, log_term=log_term, entries=entries)
        replica.raft.step(message)
        return take(replica)

    def test_a_completion_is_void_for_what_was_overwritten_since(self) -> None:
        replica = Replica(1, range(1, 6))
        old = self.append(replica, 2, 0, 0, 2, 2)
        new = self.append(replica, 3, 1, 2, 3)
        assert [(one.index, one.term) for one in new.entries] == [(2, 3)]
        assert old.mark is not None
        assert new.mark is not None
        replica.raft.durable(old.mark)
        assert replica.raft.durable_index == 0
        replica.raft.durable(new.mark)
        assert replica.raft.durable_index == 2

    def test_a_completion_of_an_earlier_term_is_void_even_if_the_same_entry_is_back(self) -> None:
        # 2@2 is written, overwritten by 2@3, and written again under term 4. The first completion says that 2@2 was
        # durable; a crash now can still find 2@3 there.
        replica = Replica(1, range(1, 6))
        marks = [
            self.append(replica, 2, 0, 0, 2, 2).mark,
            self.append(replica, 3, 1, 2, 3).mark,
            self.append(replica, 4, 1, 2, 2, 4).mark,
        ]
        for mark, durable in zip(marks, (0, 0, 3), strict=True):
            assert mark is not None
            replica.raft.durable(mark)
            assert replica.raft.durable_index == durable

    def test_a_completion_within_a_term_is_void_for_what_that_terms_leader_overwrote(self) -> None:
        # The batch that brought term 3 covered 2@2; then the leader of term 3 replaced that.
        replica = Replica(1, range(1, 6))
        self.append(replica, 2, 0, 0, 2, 2)
        replica.raft.step(Message(T.VOTE, 3, 1, 3, index=5, log_term=2, hint=1))
        covered = take(replica).mark
        assert covered == DurableMark(3, 3, 2, 2), "a mark covers the whole log so far"
        replaced = self.append(replica, 3, 1, 2, 3).mark
        assert replaced is not None
        replica.raft.durable(covered)
        assert replica.raft.durable_index == 0
        replica.raft.durable(replaced)
        assert replica.raft.durable_index == 2

    def test_a_new_term_has_a_mark_for_the_entries_that_the_void_one_named(self) -> None:
        replica = Replica(1, range(1, 6))
        first = self.append(replica, 2, 0, 0, 2, 2).mark
        replica.raft.step(Message(T.HEARTBEAT, 3, 1, 3))
        second = take(replica).mark
        assert first is not None
        assert second is not None
        replica.raft.durable(first)
        assert replica.raft.durable_index == 0
        replica.raft.durable(second)
        assert replica.raft.durable_index == 2

    def test_truncation_takes_durability_back(self) -> None:
        replica = Replica(1, range(1, 6), term=2, log=log_of(2, 2, 2))
        assert replica.raft.durable_index == 3
        self.append(replica, 3, 1, 2, 3)
        assert (replica.raft.durable_index, replica.raft.last_index) == (1, 2)


def test_who_leads_no_more_commits_by_its_leaders_word_only() -> None:
    """What others had acknowledged to it was of its own log, and that was overwritten since."""
    former = lazy_leader()
    former.propose(b"overwritten")
    former.step(Message(T.APPEND_REPLY, 2, 1, 1, index=2))
    assert former.raft.commit == 1, "its own log isn't durable, so that one is no majority"
    former.step(Message(T.APPEND, 3, 1, 2, log_term=1, index=1, commit=1, entries=[entry(2, 2)]))
    former.flush_all()
    assert (former.raft.durable_index, former.raft.last_term) == (2, 2)
    assert former.raft.commit == 1, "replica 2 may hold another entry there, and replica 3 isn't a majority"

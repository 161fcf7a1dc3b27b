"""Log replication: paper §5.3, §5.4.2 (figure 8), figure 2; flow control, lost messages, fast back-off."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nebuladb.errors import InvariantViolation, NotLeader, TooManyRequests
from nebuladb.raft import Config, Configuration, Entry, Message, MessageType, StateRole
from nebuladb.raft.entry import ENTRY_HEADER
from tests.unit.raft.harness import BIG, Network, Replica, entry, log_of

T = MessageType


def append(
    term: int, index: int, log_term: int, entries: Sequence[Entry] = (), commit: int = 0, floor: int = 0
) -> Message:
    return Message(
        T.APPEND, 2, 1, term, log_term=log_term, index=index, commit=commit, floor=floor, entries=list(entries)
    )


def ack(sender: int, term: int, index: int) -> Message:
    return Message(T.APPEND_REPLY, sender, 1, term, index=index)


def leader_of(*terms: int, voters: Sequence[int] = (1, 2, 3), config: Config | None = None) -> Replica:
    """Replica 1, leading the term after the last of its log's `terms`; its no-op is the entry behind them."""
    replica = Replica(1, voters, term=max(terms, default=0), log=log_of(*terms), config=config)
    replica.lead()
    return replica


class TestFollower:
    """Figure 2, "AppendEntries RPC, receiver implementation"."""

    @pytest.mark.parametrize(
        ("index", "log_term", "matches"), [(0, 0, True), (2, 1, True), (3, 2, True), (3, 1, False), (4, 2, False)]
    )
    def test_reply_false_if_the_log_has_no_entry_at_prev_index_whose_term_matches(
        self, index: int, log_term: int, matches: bool
    ) -> None:
        replica = Replica(1, term=2, log=log_of(1, 1, 2))
        replica.step(append(3, index, log_term))
        (reply,) = replica.take()
        assert (reply.type, reply.reject, reply.index) == (T.APPEND_REPLY, not matches, index)

    @pytest.mark.parametrize(
        ("index", "log_term", "new", "expected"),
        [
            (2, 2, [(3, 3)], [1, 2, 3]),  # append any new entries not already in the log
            (1, 1, [(2, 3), (3, 4)], [1, 3, 4]),  # a conflicting entry goes, and all that follow it
            (0, 0, [(1, 1)], [1, 2]),  # nothing conflicts: nothing goes
            (0, 0, [(1, 3)], [3]),
            (0, 0, [(1, 1), (2, 2), (3, 3)], [1, 2, 3]),
        ],
    )
    def test_delete_what_conflicts_and_append_what_is_new(
        self, index: int, log_term: int, new: list[tuple[int, int]], expected: list[int]
    ) -> None:
        replica = Replica(1, term=2, log=log_of(1, 2))
        replica.step(append(5, index, log_term, [entry(*one) for one in new]))
        assert [one.term for one in replica.disk.log] == expected
        assert [(m.index, m.reject) for m in replica.take()] == [(index + len(new), False)]

    def test_an_old_append_that_arrives_late_takes_nothing_away(self) -> None:
        replica = Replica(1)
        late = append(1, 0, 0, [entry(1, 1)])
        replica.step(append(1, 0, 0, [entry(1, 1), entry(2, 1), entry(3, 1)]))
        replica.step(late)
        assert len(replica.disk.log) == 3
        assert [m.index for m in replica.take()] == [3, 1], "and acknowledges what it asked for"

    @pytest.mark.parametrize(("commit", "new", "expected"), [(1, 2, 1), (9, 2, 2), (2, 0, 0), (9, 1, 1)])
    def test_commit_becomes_the_lesser_of_the_leaders_and_the_index_of_the_last_new_entry(
        self, commit: int, new: int, expected: int
    ) -> None:
        # The log may hold more, of a former leader, that this leader will overwrite.
        replica = Replica(1, term=1, log=log_of(1, 1, 1))
        replica.step(append(2, 0, 0, log_of(1, 1)[:new], commit=commit))
        assert replica.raft.commit == expected

    def test_committed_entries_are_applied_in_log_order(self) -> None:
        replica = Replica(1)
        replica.step(append(1, 0, 0, log_of(1, 1, 1), commit=2))
        assert replica.payloads() == [b"1@1", b"2@1"]
        replica.step(append(1, 3, 1, commit=3))
        assert replica.payloads() == [b"1@1", b"2@1", b"3@1"]

    def test_a_heartbeat_passes_the_commit_index_on(self) -> None:
        replica = Replica(1)
        replica.step(append(1, 0, 0, log_of(1, 1)))
        replica.step(Message(T.HEARTBEAT, 2, 1, 1, commit=2))
        assert replica.raft.commit == 2

    def test_a_replica_that_lost_what_it_acknowledged_stops(self) -> None:
        """S15: a heartbeat names a commit index that this replica once acknowledged to its sender."""
        replica = Replica(1, term=1, log=log_of(1))
        with pytest.raises(InvariantViolation, match=r"this node's log is older.*older copy.*member replace"):
            replica.step(Message(T.HEARTBEAT, 2, 1, 1, commit=2))

    def test_an_append_below_the_commit_index_is_answered_with_it(self) -> None:
        replica = Replica(1, term=1, commit=3, log=log_of(1, 1, 1, 1))
        replica.step(append(2, 1, 1, [entry(2, 1)]))
        assert [(m.index, m.reject) for m in replica.take()] == [(3, False)]

    def test_committed_entries_are_never_truncated(self) -> None:
        replica = Replica(1, term=1, commit=2, log=log_of(1, 1, 1))
        with pytest.raises(InvariantViolation, match="committed"):
            replica.raft.log.splice([entry(2, 2)])

    def test_an_append_with_a_gap_is_not_believed(self) -> None:
        replica = Replica(1)
        replica.step(append(1, 0, 0, [entry(2, 1)]))
        assert (replica.disk.log, replica.take()) == ([], [])

    def test_the_appends_of_a_turn_are_acknowledged_in_one_message(self) -> None:
        replica = Replica(1)
        replica.raft.step(append(1, 0, 0, [entry(1, 1)]))
        replica.raft.step(append(1, 1, 1, [entry(2, 1)]))
        replica.turn()
        assert [m.index for m in replica.take(T.APPEND_REPLY)] == [2]

    def test_an_acknowledgement_never_hides_a_rejection(self) -> None:
        replica = Replica(1)
        replica.raft.step(append(1, 5, 1))
        replica.raft.step(append(1, 0, 0, [entry(1, 1)]))
        replica.turn()
        assert [(m.index, m.reject) for m in replica.take(T.APPEND_REPLY)] == [(5, True), (1, False)]

    def test_the_floor_is_the_greatest_that_was_heard_of(self) -> None:
        replica = Replica(1)
        for floor in (3, 7, 5):
            replica.step(append(1, 0, 0, floor=floor))
        assert replica.raft.floor == 7


class TestLeader:
    """§5.3, and figure 2, "Leaders"."""

    def test_the_leader_appends_and_sends_to_all_and_applies_once_a_majority_has_it(self) -> None:
        leader = leader_of()
        index = leader.propose(b"x")
        assert index == 2
        assert leader.take(T.APPEND) == [], "the no-op is on its way, and nothing else until a follower's log is known"
        leader.step(ack(2, 1, 1))
        (message,) = [m for m in leader.take(T.APPEND) if m.receiver == 2]
        assert ([one.payload for one in message.entries], message.index, message.log_term) == ([b"x"], 1, 1)
        assert leader.payloads() == []
        leader.step(ack(2, 1, 2))
        assert leader.payloads() == [b"x"]

    def test_a_leader_commits_a_no_op_at_the_start_of_its_term(self) -> None:
        """§8."""
        leader = leader_of(1, 1)
        assert [one.term for one in leader.disk.log] == [1, 1, 2]
        assert leader.disk.log[-1].payload == b""

    def test_next_index_starts_behind_the_leaders_log_and_goes_back_until_the_logs_agree(self) -> None:
        leader = Replica(1, term=2, log=log_of(1, 1, 2))
        leader.campaign()
        for kind, term in ((T.PRE_VOTE_REPLY, 3), (T.VOTE_REPLY, 3)):
            leader.step(Message(kind, 2, 1, term))
        first = [m for m in leader.take(T.APPEND) if m.receiver == 2]
        assert [(m.index, m.log_term, len(m.entries)) for m in first] == [(3, 2, 1)]
        leader.step(Message(T.APPEND_REPLY, 2, 1, 3, index=3, reject=True, hint=2, log_term=1))
        again = [m for m in leader.take(T.APPEND) if m.receiver == 2]
        assert [(m.index, m.log_term, m.entries[0].index) for m in again] == [(2, 1, 3)]

    def test_a_leader_never_overwrites_or_deletes_entries_in_its_own_log(self) -> None:
        leader = leader_of(1, 2)
        before = list(leader.disk.log)
        for index in (3, 2, 1, 0):
            leader.step(Message(T.APPEND_REPLY, 2, 1, 3, index=index, reject=True))
            leader.step(ack(3, 3, index))
        assert leader.disk.log[:3] == before

    def test_only_the_leader_takes_proposals(self) -> None:
        replica = Replica(1)
        with pytest.raises(NotLeader) as refused:
            replica.propose()
        assert refused.value.leader == 0
        replica.step(append(1, 0, 0))
        with pytest.raises(NotLeader) as refused:
            replica.propose()
        assert refused.value.leader == 2

    def test_an_acknowledgement_beyond_the_log_stops_the_node(self) -> None:
        """A directory was put back from an older copy; it may be another node's than the leader's, which says so."""
        leader = leader_of()
        with pytest.raises(InvariantViolation, match=r"has acknowledged index 5.*voted for it.*member replace"):
            leader.step(ack(2, 1, 5))

    def test_answers_from_strangers_count_for_nothing(self) -> None:
        leader = leader_of()
        leader.step(ack(9, 1, 1))
        leader.step(Message(T.HEARTBEAT_REPLY, 9, 1, 1))
        assert leader.raft.commit == 0

    def test_a_learner_gets_the_log_and_has_no_say(self) -> None:
        leader = Replica(1, configuration=Configuration((1, 2), learners=(3,)))
        leader.lead()
        leader.step(ack(3, 1, 1))
        assert leader.raft.commit == 0
        assert dict(leader.raft.membership.peers())[2].match == 0
        leader.step(ack(2, 1, 1))
        assert leader.raft.commit == 1
        assert [peer.match for _, peer in leader.raft.membership.peers()] == [1, 1]

    def test_the_floor_is_what_every_replica_holds(self) -> None:
        leader = leader_of()
        leader.propose()
        leader.step(ack(2, 1, 2))
        leader.tick(2)
        assert leader.raft.floor == 0
        leader.step(ack(3, 1, 1))
        leader.take()
        leader.tick(2)
        assert leader.raft.floor == 1
        assert {m.floor for m in leader.take(T.HEARTBEAT)} == {1}

    def test_the_commit_index_is_told_at_once_and_once(self) -> None:
        leader = leader_of()
        leader.step(ack(2, 1, 1))
        assert [(m.receiver, m.commit, m.entries) for m in leader.take(T.APPEND)] == [(2, 1, ())]
        leader.turn()
        assert leader.take() == []

    def test_a_heartbeat_never_names_a_commit_beyond_the_followers_match(self) -> None:
        # (Behind its match the follower may hold entries of a former leader.)
        leader = leader_of(1, 1)
        leader.step(ack(2, 2, 3))
        leader.take()
        leader.tick(2)
        assert [(m.receiver, m.commit) for m in leader.take(T.HEARTBEAT)] == [(2, 3), (3, 0)]


class TestFigure8:
    """§5.4.2."""

    def test_an_entry_of_an_earlier_term_is_not_committed_by_counting_replicas(self) -> None:
        leader = leader_of(1, 2)  # leads term 3
        leader.step(ack(2, 3, 2))
        assert leader.raft.commit == 0, "2@2 is on a majority, and 2@3 of a third leader could still replace it"
        leader.step(ack(2, 3, 3))
        assert leader.raft.commit == 3, "with an entry of its own term all before it are committed indirectly"

    def test_the_five_servers_of_the_figure(self) -> None:
        logs = {1: (1, 2), 2: (1, 2), 3: (1,), 4: (1,), 5: (1, 3)}
        terms = {1: 3, 2: 2, 3: 1, 4: 1, 5: 4}
        network = Network(*(Replica(i, range(1, 6), term=terms[i], log=log_of(*logs[i])) for i in logs))
        # (c) s1 leads term 4 and has copied 2@2 to s3, but nobody has its own entry of term 4.
        network.drop = lambda m: 5 in (m.sender, m.receiver) or m.type == T.APPEND
        s1 = network.elect(1)
        network[3].step(Message(T.APPEND, 1, 3, 4, index=1, log_term=1, entries=log_of(1, 2)[1:]))
        network[2].step(Message(T.APPEND, 1, 2, 4, index=2, log_term=2))
        network.settle()
        assert (s1.raft.term, s1.raft.commit) == (4, 0), "2@2 is on s1, s2 and s3, and not committed"
        # (d) s5 can be elected by s2, s3 and s4, and overwrites 2@2 everywhere.
        network.cut_off(1)
        for replica in (2, 3, 4):
            network[replica].tick(10)
            network[replica].take()
        network.elect(5)
        network.heal()
        network.tick(6)
        assert [[one.term for one in network[i].disk.log] for i in logs] == [[1, 3, 5]] * 5


class TestBackOff:
    """§5.3, "the protocol can be optimized to reduce the number of rejected AppendEntries RPCs"."""

    @pytest.mark.parametrize(
        ("leader", "follower"),
        [
            ([1, 3, 3, 3, 5, 5, 5, 5, 5], [1, 1, 1, 1, 2, 2]),
            ([1] * 30 + [5] * 30, [1] * 30 + [2] * 10 + [4] * 50),
            ([1] + [3] * 100, [1] + [2] * 100),
            ([4] * 50, []),
            ([1] * 50, [1] * 20),
        ],
    )
    def test_a_conflicting_term_costs_one_rejection(self, leader: list[int], follower: list[int]) -> None:
        term = max(leader + follower)
        one = Replica(1, (1, 2), term=term, log=log_of(*leader))
        two = Replica(2, (1, 2), term=term, log=log_of(*follower))
        network = Network(one, two)
        rejections: list[Message] = []

        def listen(message: Message) -> bool:
            if message.reject:
                rejections.append(message)
            return False

        network.drop = listen
        network.elect(1)
        network.tick(2)
        assert [e.term for e in two.disk.log] == [e.term for e in one.disk.log]
        assert len(rejections) == 1

    @pytest.mark.parametrize(
        ("log", "index", "term", "hint"),
        [
            ([1, 1, 2, 2, 5], 9, 4, (4, 2)),  # past the end: from its end, and nothing above the leader's term there
            ([1, 1, 2, 2, 5], 5, 2, (4, 2)),
            ([1, 1, 2, 2, 5], 3, 1, (2, 1)),
            ([3, 3], 2, 1, (0, 0)),
        ],
    )
    def test_the_follower_names_the_last_entry_that_could_match(
        self, log: list[int], index: int, term: int, hint: tuple[int, int]
    ) -> None:
        replica = Replica(1, term=6, log=log_of(*log))
        replica.step(append(6, index, term))
        (reply,) = replica.take()
        assert (reply.reject, reply.index, reply.hint, reply.log_term) == (True, index, *hint)


class TestFlowControl:
    CONFIG = Config(1, max_append_bytes=200, max_inflight_messages=3, max_inflight_bytes=500)

    def test_a_probed_follower_gets_one_append_until_it_answers(self) -> None:
        leader = leader_of(config=self.CONFIG)
        leader.propose_all([b"a", b"b"])
        assert leader.take(T.APPEND) == []
        leader.step(ack(2, 1, 1))
        assert {m.receiver for m in leader.take(T.APPEND)} == {2}

    def test_proposals_of_a_turn_travel_together_up_to_the_bytes_of_an_append(self) -> None:
        leader = leader_of(config=self.CONFIG)
        leader.step(ack(2, 1, 1))
        leader.take()
        leader.propose_all([b"x" * 26] * 8)  # records of 50 bytes
        assert [(m.index, len(m.entries)) for m in leader.take(T.APPEND)] == [(1, 4), (5, 4)]

    def test_what_is_in_flight_is_bounded_by_count(self) -> None:
        leader = leader_of(config=self.CONFIG)
        leader.step(ack(2, 1, 1))
        leader.take()
        for _ in range(5):
            leader.propose(b"x")
        assert [m.index for m in leader.take(T.APPEND)] == [1, 2, 3]
        leader.step(ack(2, 1, 3))  # two arrived
        sent = leader.take(T.APPEND)
        assert [m.index for m in sent if m.entries] == [4]
        assert [len(m.entries) for m in sent if m.entries] == [2]

    def test_what_is_in_flight_is_bounded_by_bytes(self) -> None:
        leader = leader_of(config=self.CONFIG)
        leader.step(ack(2, 1, 1))
        leader.take()
        for _ in range(3):
            leader.propose(b"x" * 300)  # each alone exceeds an append's bytes, two exceed what may be in flight
        assert [len(m.entries) for m in leader.take(T.APPEND)] == [1, 1]

    def test_too_many_uncommitted_bytes_are_refused_and_nothing_is_appended(self) -> None:
        leader = leader_of(config=Config(1, max_uncommitted_bytes=1000))
        leader.step(ack(2, 1, 1))
        leader.propose(b"x" * 900)
        with pytest.raises(TooManyRequests):
            leader.propose(b"x" * 100)
        assert leader.raft.last_index == 2
        assert leader.raft.uncommitted_bytes == 900 + ENTRY_HEADER
        leader.step(ack(2, 1, 2))
        assert leader.raft.uncommitted_bytes == 0
        leader.propose(b"x" * 5000)  # one alone may exceed the bound: it is the request's to be refused elsewhere


class TestLoss:
    def test_a_lost_probe_is_sent_again_after_a_heartbeat_was_answered(self) -> None:
        leader = leader_of()
        leader.take()
        for _ in range(2):
            leader.tick(2)
            leader.take()
            leader.step(Message(T.HEARTBEAT_REPLY, 2, 1, 1))
        assert [(m.receiver, m.index, len(m.entries)) for m in leader.take(T.APPEND)] == [(2, 0, 1)]

    def test_appends_that_were_lost_with_a_full_window_are_found_out_by_an_empty_one(self) -> None:
        config = Config(1, max_inflight_messages=2)
        network = Network.of(3, config=config)
        leader = network.elect(1)
        network.drop = lambda m: m.type == T.APPEND and m.receiver == 2
        for _ in range(6):
            leader.propose(b"x")
            network.settle()
        network.heal()
        network.tick(8)
        assert network[2].raft.last_index == leader.raft.last_index
        assert network[2].payloads() == [b"x"] * 6

    def test_heartbeats_for_reads_do_not_multiply_appends(self) -> None:
        leader = leader_of()
        leader.step(ack(2, 1, 1))
        leader.propose(b"x")
        leader.take()
        for _ in range(10):
            leader.step(Message(T.HEARTBEAT_REPLY, 2, 1, 1))
        assert leader.take(T.APPEND) == []

    def test_a_late_rejection_is_stale(self) -> None:
        leader = leader_of(1, 1)
        leader.step(ack(2, 2, 3))
        leader.take()
        leader.step(Message(T.APPEND_REPLY, 2, 1, 2, index=2, reject=True, hint=1, log_term=1))
        assert leader.take(T.APPEND) == []
        leader.propose()
        assert [m.index for m in leader.take(T.APPEND) if m.receiver == 2] == [3], "it still streams"

    def test_a_follower_behind_the_logs_start_is_left_alone(self) -> None:
        # It can't be helped without a snapshot; the leader must not stumble over it.
        leader = leader_of(1, 1)
        leader.step(ack(2, 2, 3))
        leader.disk.cut(3)
        leader.raft.cut(3)
        leader.take()
        leader.step(Message(T.APPEND_REPLY, 3, 1, 2, index=2, reject=True))
        leader.propose()
        assert {m.receiver for m in leader.take(T.APPEND)} == {2}


def test_a_group_of_five_replicates_with_two_dead() -> None:
    network = Network.of(5)
    leader = network.elect(1)
    network.cut_off(4, 5)
    leader.propose(b"x")
    network.settle()
    assert [replica.payloads() for replica in network.replicas.values()] == [[b"x"]] * 3 + [[]] * 2
    network.heal()
    network.tick(6)
    assert network[5].payloads() == [b"x"]


def test_a_restarted_replica_goes_on_where_it_was() -> None:
    network = Network.of(3)
    leader = network.elect(1)
    leader.propose(b"a")
    network.settle()
    network[2].crash()
    assert (network[2].raft.term, network[2].raft.vote, network[2].raft.last_index) == (1, 1, 2)
    network[3].crash()
    network.tick(2)
    leader.propose(b"b")
    network.settle()
    assert network[2].payloads() == network[3].payloads() == [b"a", b"b"]


def test_a_cut_log_is_not_asked_for_what_it_lost() -> None:
    network = Network.of(3)
    leader = network.elect(1)
    for number in range(10):
        leader.propose(b"%d" % number)
    network.settle()
    network.tick(2)
    for replica in network.replicas.values():
        assert replica.raft.floor == 11
        replica.disk.cut(replica.raft.floor)
        replica.raft.cut(replica.raft.floor)
        replica.raft.cut(3)  # a lower one is nothing new
    network.cut_off(1)
    network.tick(25)
    (successor,) = [r for r in network.replicas.values() if r.role() is StateRole.LEADER and r.id != 1]
    successor.propose(b"more")
    network.heal()
    network.tick(6)
    assert all(replica.payloads()[-1] == b"more" for replica in network.replicas.values())


def test_committed_entries_come_in_slices_of_bounded_bytes() -> None:
    replica = Replica(1)
    replica.raft.step(append(1, 0, 0, [entry(i, 1, b"x" * 76) for i in range(1, 6)], commit=5))
    ready = replica.raft.ready()
    assert ready is not None
    assert ready.mark is not None
    assert replica.raft.committed_entries(0, BIG) == [], "S1: committed, and not durable here"
    assert ready.hard_state is not None
    replica.disk.write(ready.hard_state, ready.entries)
    replica.raft.durable(ready.mark)
    assert [e.index for e in replica.raft.committed_entries(0, 250)] == [1, 2]
    assert [e.index for e in replica.raft.committed_entries(2, 10)] == [3], "at least one"
    assert [e.index for e in replica.raft.committed_entries(3, BIG)] == [4, 5]
    assert replica.raft.committed_entries(5, BIG) == []

"""What a waiting client is told: *failed* only if its write certainly is in no log (S19)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nebuladb.errors import NebulaError, NoLeader, NotLeader, Outcome, TooManyRequests, Unavailable, UnknownOutcome
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node import proposals as module
from nebuladb.node.entry import encode_command
from nebuladb.node.output import Request
from nebuladb.node.proposals import Outcomes, Pending, Proposals
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.share import Share

LEADER = 77
LONG = 1_000_000


def request(number: int, deadline: int = LONG, size: int = 4) -> Request:
    return Request(number, 2, bytes(size), deadline)


def filled(*numbers: int) -> Proposals:
    proposals = Proposals()
    for number in numbers:
        proposals.add(request(number))
    return proposals


def take(proposals: Proposals) -> list[Pending]:
    return proposals.take(100, 10_000)


def told(outcomes: Outcomes) -> dict[int, str]:
    """Request → class of what its client is told."""
    assert len({number for number, _ in outcomes}) == len(outcomes), "a client is answered once"
    return {number: type(outcome).__name__ for number, outcome in outcomes}


def test_a_write_is_answered_from_what_was_applied_here() -> None:
    proposals = filled(1, 2)
    proposals.placed(take(proposals), 5, 3)
    answer = Answer(9)
    assert proposals.applied(5, [(1, answer), (2, answer)]) == [(1, answer), (2, answer)]
    assert len(proposals) == 0


def test_another_entry_at_its_index_means_failed() -> None:
    proposals = filled(1)
    proposals.placed(take(proposals), 5, 3)
    assert proposals.applied(4, []) == []
    [(number, error)] = proposals.applied(5, [(99, Answer(9))])
    assert number == 1
    assert isinstance(error, NotLeader)
    assert error.outcome is Outcome.FAILED


def test_a_link_that_breaks_after_sending_means_unknown_and_spares_the_queue() -> None:
    proposals = filled(1)
    proposals.sent(take(proposals), 1, LEADER)
    proposals.add(request(2))
    assert proposals.lost(LEADER + 1) == []
    [(number, error)] = proposals.lost(LEADER)
    assert number == 1
    assert isinstance(error, UnknownOutcome)
    assert error.outcome is Outcome.UNKNOWN
    assert [pending.request.request for pending in take(proposals)] == [2]


def test_a_refused_forward_goes_back_to_the_front_in_order_and_is_certainly_undone() -> None:
    proposals = filled(1, 2)
    proposals.sent(take(proposals), 1, LEADER)
    proposals.add(request(3))
    assert proposals.replied(1, LEADER, 0, 3, refused=True, applied=0) == []
    assert proposals.lost(LEADER) == []
    assert told(proposals.expire(LONG)) == {1: "NoLeader", 2: "NoLeader", 3: "NoLeader"}


def test_what_was_given_back_keeps_its_order() -> None:
    proposals = filled(1, 2, 3)
    taken = proposals.take(2, 10_000)
    proposals.give_back(taken)
    assert [pending.request.request for pending in take(proposals)] == [1, 2, 3]


def test_a_forward_is_placed_by_its_reply() -> None:
    proposals = filled(1)
    proposals.sent(take(proposals), 1, LEADER)
    assert proposals.replied(1, LEADER, 6, 3, refused=False, applied=5) == []
    assert proposals.lost(LEADER) == [], "it stands in the log: this node's own apply will tell"
    assert told(proposals.applied(6, [(1, Answer(2))])) == {1: "Answer"}


def test_an_answer_may_come_before_the_reply_that_places_it() -> None:
    proposals = filled(1)
    proposals.sent(take(proposals), 1, LEADER)
    assert told(proposals.applied(6, [(1, Answer(2))])) == {1: "Answer"}
    assert proposals.replied(1, LEADER, 6, 3, refused=False, applied=6) == []
    assert proposals.lost(LEADER) == []


def test_a_reply_that_places_it_where_something_else_was_applied_means_failed() -> None:
    proposals = filled(1)
    proposals.sent(take(proposals), 1, LEADER)
    assert proposals.applied(6, [(99, Answer(2))]) == []
    assert told(proposals.replied(1, LEADER, 6, 3, refused=False, applied=6)) == {1: "NotLeader"}


@pytest.mark.parametrize(("number", "node"), [(2, LEADER), (1, LEADER + 1)], ids=["another number", "another node"])
def test_a_foreign_reply_is_void(number: int, node: int) -> None:
    proposals = filled(1)
    proposals.sent(take(proposals), 1, LEADER)
    assert proposals.replied(number, node, 6, 3, refused=True, applied=9) == []
    assert not proposals.queue
    assert told(proposals.lost(LEADER)) == {1: "UnknownOutcome"}


def test_a_repeated_reply_is_void() -> None:
    proposals = filled(1)
    proposals.sent(take(proposals), 1, LEADER)
    proposals.replied(1, LEADER, 6, 3, refused=False, applied=0)
    assert proposals.replied(1, LEADER, 6, 3, refused=True, applied=0) == []
    assert not proposals.queue


def test_past_the_deadline_what_never_left_failed_and_the_rest_is_unknown() -> None:
    proposals = Proposals()
    for number in (1, 2, 3):
        proposals.add(request(number, deadline=100 * number))
        if number < 3:
            taken = take(proposals)
            if number == 1:
                proposals.placed(taken, 5, 3)
            else:
                proposals.sent(taken, 1, LEADER)
    assert proposals.expire(99) == []
    assert told(proposals.expire(250)) == {1: "UnknownOutcome", 2: "UnknownOutcome"}
    assert told(proposals.expire(300)) == {3: "NoLeader"}
    assert not proposals.queue
    assert proposals.applied(5, [(1, Answer(2))]) == []


def test_what_expired_where_the_leader_put_it_is_kept_no_longer() -> None:
    """It may be applied here in an hour only: a node that waited for a snapshot kept each write's bytes until then."""
    proposals = Proposals()
    for number in (1, 2):
        proposals.add(request(number, deadline=1_000 * number))
    proposals.sent(take(proposals), 5, LEADER)
    proposals.replied(5, LEADER, 100, 1, refused=False, applied=0)
    assert told(proposals.expire(1_500)) == {1: "UnknownOutcome"}
    assert len(proposals._placed) == 1
    assert told(proposals.expire(2_500)) == {2: "UnknownOutcome"}
    assert not proposals._placed


def test_without_a_leader_what_never_left_fails_before_its_deadline_and_nothing_else_does() -> None:
    proposals = filled(1, 2, 3, 4)
    proposals.placed(proposals.take(1, 10_000), 5, 3)
    proposals.sent(proposals.take(1, 10_000), 1, LEADER)
    proposals.sent(proposals.take(1, 10_000), 2, LEADER)
    proposals.replied(2, LEADER, 0, 3, refused=True, applied=0)
    assert proposals.expire(0) == []
    outcomes = proposals.expire(0, leaderless=True)
    assert told(outcomes) == {3: "NoLeader", 4: "NoLeader"}
    assert all(isinstance(error, NebulaError) and error.outcome is Outcome.FAILED for _, error in outcomes)
    assert not proposals.queue
    assert proposals.forwards == 1
    assert told(proposals.applied(5, [(1, Answer(2)), (2, Answer(2))])) == {1: "Answer", 2: "Answer"}


def test_a_forward_that_was_answered_and_never_replied_to_is_forgotten() -> None:
    """The reply was lost, the answer came from what was applied here: it lay there until some deadline passed."""
    proposals = filled(1)
    proposals.sent(take(proposals), 7, node=2)
    proposals.applied(5, [(1, Answer(5))])
    assert len(proposals) == 0
    assert proposals.expire(1) == []
    assert proposals.forwards == 0


def test_the_end_of_a_replica_tells_everyone() -> None:
    proposals = filled(1)
    proposals.placed(take(proposals), 5, 3)
    proposals.add(request(2))
    outcomes = dict(proposals.close())
    assert isinstance(outcomes[1], UnknownOutcome)
    assert isinstance(outcomes[2], Unavailable)
    assert len(proposals) == 0
    assert not proposals.queue


def test_taking_is_bounded_by_count_and_bytes_but_takes_one() -> None:
    proposals = Proposals()
    for number, size in enumerate((50, 60, 10, 10, 10)):
        proposals.add(request(number, size=size))
    assert [len(proposals.take(2, 40)) for _ in range(5)] == [1, 1, 2, 1, 0]


def test_no_more_may_wait_than_the_bounds_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    proposals = filled(1, 2)
    with pytest.raises(TooManyRequests):
        proposals.add(request(3))
    proposals.placed(take(proposals), 5, 3)
    with pytest.raises(TooManyRequests):
        proposals.add(request(3))
    proposals.applied(5, [(1, Answer(2)), (2, Answer(2))])
    proposals.add(request(3))


def test_no_more_bytes_may_wait_than_all_groups_share() -> None:
    share = Share(9)
    proposals, others = Proposals(share), Proposals(share)
    proposals.add(request(1, size=4))
    others.add(request(2, size=3))
    for group in (proposals, others):
        with pytest.raises(TooManyRequests):
            group.add(request(3, size=3))
    proposals.expire(LONG)
    proposals.add(request(3, size=4))
    proposals.close()
    others.close()
    assert share.used == 0


def test_one_group_leaves_room_for_the_others_and_all_together_are_bounded_by_count() -> None:
    share, counts = Share(100), Share(3)
    proposals, others = Proposals(share, counts), Proposals(share, counts)
    proposals.add(request(1, size=50))
    with pytest.raises(TooManyRequests):
        proposals.add(request(2, size=1))
    others.add(request(2, size=1))
    others.add(request(3, size=1))
    with pytest.raises(TooManyRequests):
        others.add(request(4, size=1))
    proposals.close()
    others.add(request(4, size=1))
    others.close()
    assert (share.used, counts.used) == (0, 0)


def control(number: int) -> Request:
    body = lease_pb2.LeaseKeepAliveRequest(id=5).SerializeToString()
    return Request(number, 2, encode_command(Command(Kind.LEASE_KEEP_ALIVE, body)), LONG)


def test_control_commands_get_in_past_every_bound_and_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    share, counts = Share(10), Share(1)
    proposals = Proposals(share, counts)
    proposals.add(request(1, size=5))
    monkeypatch.setattr(module, "MAX_PENDING", 0)
    monkeypatch.setattr(module, "MAX_CONTROL", 3)
    for number in (2, 3, 4):
        proposals.add(control(number))
    with pytest.raises(TooManyRequests):
        proposals.add(control(5))
    with pytest.raises(TooManyRequests):
        proposals.add(request(5, size=1))
    assert [pending.request.request for pending in proposals.take(2, 1_000)] == [2, 3]
    rest = proposals.take(10, 1_000)
    assert [pending.request.request for pending in rest] == [4, 1]
    proposals.give_back(rest)
    assert [pending.request.request for pending in proposals.take(10, 1_000, urgent=True)] == [4]
    assert [pending.request.request for pending in proposals.take(10, 1_000)] == [1]
    proposals.close()
    assert (share.used, counts.used) == (0, 0)


def test_control_commands_are_cut_into_entries_like_all_others() -> None:
    """Sixty of half a MiB each, say of keyspaces with many split keys, were one entry, which no frame holds."""
    proposals = Proposals()
    for number in range(1, 6):
        proposals.add(Request(number, META_GROUP, bytes(600), LONG))
    proposals.add(request(6))
    assert [[one.request.request for one in proposals.take(10, 1_300)] for _ in range(3)] == [[1, 2], [3, 4], [5, 6]]
    proposals.add(Request(7, META_GROUP, bytes(2_000), LONG))
    proposals.add(request(8))
    assert [one.request.request for one in proposals.take(10, 1_300, urgent=True)] == [7], "one at least"
    assert [one.request.request for one in proposals.take(10, 1_300)] == [8]


class TheLog(RuleBasedStateMachine):
    """Against a log that knows the truth: what is told *failed* is never applied, and everyone is told once."""

    def __init__(self) -> None:
        super().__init__()
        self.proposals = Proposals()
        self.now = 0
        self.issued = 0
        self.applied = 0
        self.forwards = 0
        self.term = 1
        self.log: list[tuple[int, list[int]]] = []
        """(term, requests) of each entry behind the applied ones; the first of them has index applied + 1."""
        self.flying: dict[int, list[int]] = {}
        """Forwards that have not reached the leader: number → requests."""
        self.replies: dict[int, tuple[int, int]] = {}
        """Forward's number → (index, term), index 0 = refused: replies on their way."""
        self.outcomes: dict[int, Answer | NebulaError] = {}
        self.done: set[int] = set()

    def tell(self, outcomes: Outcomes) -> None:
        for number, outcome in outcomes:
            assert number not in self.outcomes, "a client is answered once"
            self.outcomes[number] = outcome
            if isinstance(outcome, NebulaError):
                assert not (outcome.outcome is Outcome.FAILED and number in self.done), "failed, but it was applied"

    def append(self, requests: list[int]) -> int:
        self.log.append((self.term, requests))
        return self.applied + len(self.log)

    @rule(patience=st.integers(1, 6), count=st.integers(1, 3))
    def ask(self, patience: int, count: int) -> None:
        for _ in range(count):
            self.issued += 1
            self.proposals.add(request(self.issued, self.now + patience))

    @precondition(lambda self: bool(self.proposals.queue or self.proposals.control_queue))
    @rule()
    def propose(self) -> None:
        taken = self.proposals.take(2, 10_000)
        self.proposals.placed(taken, self.append([p.request.request for p in taken]), self.term)

    @precondition(lambda self: bool(self.proposals.queue or self.proposals.control_queue))
    @rule()
    def give_back(self) -> None:
        self.proposals.give_back(self.proposals.take(2, 10_000))

    @precondition(lambda self: bool(self.proposals.queue or self.proposals.control_queue))
    @rule()
    def forward(self) -> None:
        taken = self.proposals.take(2, 10_000)
        self.forwards += 1
        self.proposals.sent(taken, self.forwards, LEADER)
        self.flying[self.forwards] = [p.request.request for p in taken]

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), accepts=st.booleans())
    def arrive(self, data: Any, accepts: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.flying)))
        requests = self.flying.pop(number)
        self.replies[number] = (self.append(requests), self.term) if accepts else (0, self.term)

    @precondition(lambda self: self.replies)
    @rule(data=st.data(), repeat=st.booleans())
    def reply(self, data: Any, repeat: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.replies)))
        index, term = self.replies[number] if repeat else self.replies.pop(number)
        self.tell(self.proposals.replied(number, LEADER, index, term, refused=not index, applied=self.applied))

    @rule()
    def break_link(self) -> None:
        self.tell(self.proposals.lost(LEADER))

    @precondition(lambda self: self.log)
    @rule(keep=st.integers(0, 3))
    def elect(self, keep: int) -> None:
        """A new leader overwrites what was not committed, and adds an entry of its own."""
        del self.log[keep:]
        self.term += 1
        self.append([])

    @precondition(lambda self: self.log)
    @rule()
    def apply(self) -> None:
        _, requests = self.log.pop(0)
        self.applied += 1
        for number in requests:
            assert number not in self.done
            outcome = self.outcomes.get(number)
            assert not (isinstance(outcome, NebulaError) and outcome.outcome is Outcome.FAILED), (
                f"write {number} was told to have failed, and is applied"
            )
        self.done.update(requests)
        self.tell(self.proposals.applied(self.applied, [(number, Answer(self.applied)) for number in requests]))

    @rule(passed=st.integers(0, 3), leaderless=st.booleans())
    def wait(self, passed: int, leaderless: bool) -> None:
        self.now += passed
        self.tell(self.proposals.expire(self.now, leaderless=leaderless))

    @invariant()
    def everyone_waits_or_was_told(self) -> None:
        assert len(self.proposals) + len(self.outcomes) == self.issued

    def teardown(self) -> None:
        self.tell(self.proposals.close())
        assert len(self.proposals) == 0
        assert len(self.outcomes) == self.issued


TheLog.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAgainstTheLog = TheLog.TestCase


def test_errors_say_what_a_client_may_conclude() -> None:
    assert NoLeader().outcome is NotLeader().outcome is Unavailable().outcome is Outcome.FAILED
    assert UnknownOutcome().outcome is Outcome.UNKNOWN

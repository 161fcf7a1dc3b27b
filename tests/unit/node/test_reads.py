"""Linearizable reads: a round for all that wait, then the applied index (S7, S8)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nebuladb.errors import NoLeader, TooManyRequests, Unavailable
from nebuladb.node import reads as module
from nebuladb.node.reads import MAX_ROUNDS, ReadOutcomes, Reads

LONG = 1_000_000


def waiting(*requests: int) -> Reads:
    reads = Reads()
    for request in requests:
        reads.add(request, LONG)
    return reads


def test_a_round_serves_those_that_came_before_it() -> None:
    reads = waiting(1, 2)
    reads.start(7)
    reads.add(3, LONG)
    assert reads.confirmed(7, 5, 5) == [(1, None), (2, None)]
    assert len(reads) == 1
    assert reads.wants_round


def test_a_confirmed_read_waits_until_its_index_is_applied() -> None:
    reads = waiting(1)
    reads.start(7)
    assert reads.confirmed(7, 5, 4) == []
    assert reads.applied(4) == []
    assert reads.applied(5) == [(1, None)]
    assert reads.applied(6) == []
    assert len(reads) == 0


def test_reads_that_wait_for_what_will_not_come_are_given_up() -> None:
    reads = waiting(1)
    reads.start(7)
    reads.add(2, LONG)
    assert reads.confirmed(7, 5, 4) == []
    reads.start(8)
    reads.add(3, LONG)
    assert reads.confirmed(8, 6, 4) == []
    ((request, error),) = reads.give_up(5)
    assert (request, type(error)) == (2, Unavailable)
    assert reads.give_up(5) == []
    assert reads.applied(6) == [(1, None)]
    assert len(reads) == 1, "one wants a round"


def test_a_failed_round_is_asked_again_before_what_came_later() -> None:
    reads = waiting(1)
    reads.start(7)
    reads.add(2, LONG)
    assert reads.confirmed(7, -1, 9) == []
    reads.start(8)
    assert reads.confirmed(8, 5, 9) == [(1, None), (2, None)]


def test_a_late_or_repeated_confirmation_is_void() -> None:
    reads = waiting(1)
    reads.start(7)
    assert reads.confirmed(6, 1, 9) == []
    assert reads.confirmed(7, 5, 9) == [(1, None)]
    assert reads.confirmed(7, 5, 9) == []
    assert len(reads) == 0


def test_rounds_in_flight_are_bounded_and_gather_reads() -> None:
    reads = waiting(1)
    assert not Reads().wants_round
    wanted = []
    for context in range(MAX_ROUNDS):
        wanted.append(reads.wants_round)
        reads.start(context)
        wanted.append(reads.wants_round)  # nobody waits
        reads.add(10 + context, LONG)
    assert wanted == [True, False] * MAX_ROUNDS
    assert not reads.wants_round, "enough rounds are on their way"
    reads.confirmed(0, 1, 1)
    assert len(reads) == MAX_ROUNDS
    reads.start(MAX_ROUNDS)
    assert reads.confirmed(MAX_ROUNDS, 1, 1) == [(10 + MAX_ROUNDS - 1, None)]


def test_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_READS", 2)
    reads = waiting(1, 2)
    with pytest.raises(TooManyRequests):
        reads.add(3, LONG)
    reads.start(1)
    with pytest.raises(TooManyRequests):
        reads.add(3, LONG)
    reads.confirmed(1, 5, 5)
    reads.add(3, LONG)


def test_past_its_deadline_a_read_fails_wherever_it_is() -> None:
    reads = Reads()
    reads.add(1, 10)
    reads.add(2, 99)
    reads.start(1)
    reads.confirmed(1, 5, 4)
    reads.add(3, 10)
    reads.add(4, 99)
    reads.start(2)
    reads.add(5, 10)
    reads.add(6, 99)
    assert reads.expire(9) == []
    late = reads.expire(10)
    assert sorted(request for request, _ in late) == [1, 3, 5]
    assert all(isinstance(error, NoLeader) for _, error in late)
    assert len(reads) == 3
    assert reads.applied(5) == [(2, None)]
    assert reads.confirmed(2, 5, 5) == [(4, None)]


def test_the_end_of_a_replica_fails_all() -> None:
    reads = waiting(1)
    reads.start(1)
    reads.add(2, LONG)
    assert {request for request, _ in reads.close()} == {1, 2}
    assert len(reads) == 0


class Rounds(RuleBasedStateMachine):
    """Each read is answered once, and never before the commit index of when it came is applied."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = Reads()
        self.commit = self.applied = self.now = 0
        self.issued = self.context = 0
        self.needs: dict[int, int] = {}
        self.rounds: dict[int, int] = {}
        """Rounds on their way: context → commit index when it was asked."""

    def tell(self, ready: ReadOutcomes) -> None:
        for request, error in ready:
            needed = self.needs.pop(request)  # a KeyError: told twice
            assert error is not None or self.applied >= needed

    @rule(patience=st.integers(1, 5))
    def ask(self, patience: int) -> None:
        self.issued += 1
        self.needs[self.issued] = self.commit
        self.reads.add(self.issued, self.now + patience)

    @precondition(lambda self: self.reads.wants_round)
    @rule()
    def start(self) -> None:
        self.context += 1
        self.reads.start(self.context)
        self.rounds[self.context] = self.commit

    @precondition(lambda self: self.rounds)
    @rule(fails=st.booleans(), newest=st.booleans())
    def answer(self, fails: bool, newest: bool) -> None:
        context = max(self.rounds) if newest else min(self.rounds)
        index = self.rounds.pop(context)
        self.tell(self.reads.confirmed(context, -1 if fails else index, self.applied))

    @rule()
    def write(self) -> None:
        self.commit += 1

    @precondition(lambda self: self.applied < self.commit)
    @rule()
    def apply(self) -> None:
        self.applied += 1
        self.tell(self.reads.applied(self.applied))

    @rule(passed=st.integers(0, 3))
    def wait(self, passed: int) -> None:
        self.now += passed
        self.tell(self.reads.expire(self.now))

    @invariant()
    def nobody_is_forgotten(self) -> None:
        assert len(self.reads) == len(self.needs)

    def teardown(self) -> None:
        self.tell(self.reads.close())
        assert not self.needs


Rounds.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRounds = Rounds.TestCase

"""The decisions, without a network."""

from __future__ import annotations

import itertools
import random

import grpc
import grpc.aio
import pytest
from grpc.aio import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb import errors
from nebuladb.client.endpoints import MAX_ENDPOINTS, REST, Endpoints
from nebuladb.client.errors import Failure, failure_of, not_sent, silent
from nebuladb.client.retry import LEAST, LONGEST_PAUSE, READ_SHARES, SHARES, Attempts, Kind, may_repeat
from nebuladb.errors import NebulaError, Outcome

UNKNOWN = Failure(errors.UnknownOutcome(), retryable=False)
LOST = Failure(errors.UnknownOutcome(), retryable=False, lost=True)
EXPIRED_UNKNOWN = Failure(errors.SessionExpired(), retryable=False)
EXPIRED_UNKNOWN.error.outcome = Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("failure", "read", "write", "once", "again"),
    [
        (not_sent("a:1"), True, True, True, True),
        (silent("a:1"), True, True, True, True),
        (Failure(errors.NotLeader(), retryable=True), True, True, True, True),
        (Failure(errors.NoLeader(), retryable=True), True, True, True, True),
        (Failure(errors.TooManyRequests(), retryable=True), True, True, True, True),
        (UNKNOWN, True, False, True, True),
        (LOST, True, False, True, True),
        (Failure(errors.InvalidArgument(), retryable=False), False, False, False, False),
        (Failure(errors.KeyspaceNotFound(), retryable=False), False, False, False, False),
        (Failure(errors.SessionExpired(), retryable=False), False, False, False, False),
        (EXPIRED_UNKNOWN, False, False, False, False),
        (Failure(errors.NebulaError(), retryable=False), False, False, False, False),
    ],
)
def test_what_may_be_repeated(failure: Failure, read: bool, write: bool, once: bool, again: bool) -> None:
    assert [may_repeat(kind, failure) for kind in Kind] == [read, write, once, again]


def _attempts(kind: Kind, *addresses: str, timeout: float = 5.0, pinned: str = "") -> Attempts:
    endpoints = Endpoints(addresses or ("a:1", "b:1", "c:1"))
    return Attempts(kind, endpoints, random.Random(1), timeout=timeout, now=100.0, pinned=pinned)


def test_the_others_are_asked_at_once_and_then_after_pauses_that_grow() -> None:
    attempts = _attempts(Kind.READ)
    now, pauses, asked = 100.0, [], []
    with pytest.raises(errors.Unavailable):  # noqa: PT012
        while True:
            step = attempts.next(now)
            asked.append(step.address)
            pause = attempts.failed(step.address, not_sent(step.address), now)
            now += pause
            pauses.append(pause)
    assert asked[:3] == ["a:1", "b:1", "c:1"]
    assert pauses[:3] == [0.0, 0.0, pytest.approx(0.015, abs=0.005)]
    waits = [pause for pause in pauses if pause]
    assert all(0.01 <= pause <= LONGEST_PAUSE for pause in waits)
    assert waits[-1] >= LONGEST_PAUSE / 2
    assert 104 < now < 105
    assert set(asked) == {"a:1", "b:1", "c:1"}


def test_a_node_that_hangs_gets_a_share_of_the_time() -> None:
    for kind, share in ((Kind.READ, 5 / READ_SHARES), (Kind.ONCE, 5 / SHARES), (Kind.WRITE, 5.0)):
        assert _attempts(kind).next(100.0).seconds == pytest.approx(share)
    attempts = _attempts(Kind.READ)
    assert attempts.next(104.9).seconds == pytest.approx(0.1)
    assert attempts.next(200.0).seconds > 0


ONE, TWO, THREE = (("a:1",), ("a:1", "b:1"), ("a:1", "b:1", "c:1"))


@pytest.mark.parametrize("kind", [Kind.ONCE, Kind.AGAIN])
@pytest.mark.parametrize("addresses", [ONE, TWO, THREE])
def test_of_what_is_slow_everywhere_the_second_try_has_the_rest_of_the_time(
    kind: Kind, addresses: tuple[str, ...]
) -> None:
    """Three of a third each would all be broken off, each for an entry more in a log that is slow already."""
    attempts = _attempts(kind, *addresses, timeout=6.0)
    first = attempts.next(100.0)
    assert first.seconds == pytest.approx(2.0)
    pause = attempts.failed(first.address, LOST, 102.0)
    assert attempts.next(102.0 + pause).seconds == pytest.approx(4.0 - pause)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_read_is_tried_three_times_each_longer_than_the_one_before(size: int) -> None:
    """Two may hang of those that it asks; and where all are slow the last try has half of the time."""
    addresses = [f"{number}:1" for number in range(size)]
    attempts, now, asked, given = _attempts(Kind.READ, *addresses, timeout=6.0), 100.0, [], []
    for number in range(3):
        step = attempts.next(now)
        asked.append(step.address)
        given.append(step.seconds)
        now += step.seconds
        if number < 2:
            now += attempts.failed(step.address, silent(step.address), now)
    assert given == pytest.approx([1.0, 2.0, 3.0], abs=0.1)
    assert len(set(asked)) == min(size, 3)


def test_a_stream_that_breaks_a_while_after_it_began_has_not_used_up_its_time() -> None:
    """Of how long it lived nothing follows for the next try's share."""
    attempts = _attempts(Kind.READ, timeout=6.0)
    address = attempts.next(100.0).address
    attempts.worked(address, 150.0)
    attempts.failed(address, not_sent(address), 150.5)
    assert attempts.next(150.5).seconds == pytest.approx(1.0)


def test_the_time_that_a_reader_takes_is_not_the_streams() -> None:
    attempts = _attempts(Kind.READ, timeout=6.0)
    address = attempts.next(100.0).address
    attempts.worked(address, 101.0)
    attempts.waited(200.0)
    attempts.failed(address, not_sent(address), 200.0)
    assert attempts.next(200.0).seconds == pytest.approx(1.0)


def test_a_try_that_failed_at_once_leaves_the_next_its_share() -> None:
    attempts = _attempts(Kind.ONCE, timeout=6.0)
    attempts.failed(attempts.next(100.0).address, LOST, 100.1)
    assert attempts.next(100.1).seconds == pytest.approx(2.0)


def test_overload_is_not_carried_to_the_next_node_at_once() -> None:
    attempts = _attempts(Kind.WRITE)
    assert attempts.failed("a:1", Failure(errors.TooManyRequests(), retryable=True), 100.0) > 0


def test_a_pinned_node_that_is_away_is_given_up_at_once() -> None:
    attempts = _attempts(Kind.READ, pinned="d:1")
    assert attempts.next(100.0).address == "d:1"
    assert attempts.failed("d:1", Failure(errors.NoLeader(), retryable=True), 100.0) > 0
    with pytest.raises(errors.Unavailable):
        attempts.failed("d:1", not_sent("d:1"), 100.1)


def _final(kind: Kind, *failures: Failure) -> NebulaError:
    attempts = _attempts(kind)
    with pytest.raises(NebulaError) as caught:  # noqa: PT012
        for failure in failures:
            attempts.failed(attempts.next(100.0).address, failure, 100.0)
        attempts.failed("a:1", failures[-1], 200.0)
    return caught.value


def test_doubt_stays_until_a_recorded_answer_settles_it() -> None:
    lost = Failure(errors.UnknownOutcome(), retryable=False, lost=True)
    refused = Failure(errors.NoLeader(), retryable=True)
    final = _final(Kind.ONCE, lost, refused)
    assert isinstance(final, errors.UnknownOutcome)
    assert isinstance(final.__cause__, errors.NoLeader)
    assert _final(Kind.ONCE, refused, refused).outcome is Outcome.FAILED
    settled = _final(Kind.ONCE, lost, Failure(errors.LeaseNotFound(), retryable=False))
    assert (type(settled), settled.outcome) == (errors.LeaseNotFound, Outcome.FAILED)
    elsewhere = _final(Kind.ONCE, lost, Failure(errors.KeyspaceNotFound(), retryable=False))
    assert elsewhere.outcome is Outcome.UNKNOWN
    expired = _final(Kind.ONCE, lost, Failure(errors.SessionExpired(), retryable=False))
    assert (type(expired), expired.outcome) == (errors.SessionExpired, Outcome.UNKNOWN)
    unasked = _final(Kind.ONCE, Failure(errors.SessionExpired(), retryable=False))
    assert (type(unasked), unasked.outcome) == (errors.SessionExpired, Outcome.FAILED)


def test_what_may_be_done_again_tells_in_doubt_why_it_was_refused() -> None:
    again, once = (
        _final(kind, LOST, Failure(errors.KeyspaceNotFound(), retryable=False)) for kind in (Kind.AGAIN, Kind.ONCE)
    )
    assert (type(again), again.outcome) == (errors.KeyspaceNotFound, Outcome.UNKNOWN)
    assert isinstance(once, errors.UnknownOutcome)
    assert isinstance(_final(Kind.AGAIN, LOST, Failure(errors.NoLeader(), retryable=True)), errors.UnknownOutcome)


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.ONCE])
def test_no_try_of_a_write_begins_so_late_that_a_failure_would_become_unknown(kind: Kind) -> None:
    refused = Failure(errors.NoLeader(), retryable=True)
    attempts = _attempts(kind)
    assert attempts.next(100.0).least == LEAST
    assert attempts.failed("a:1", refused, 105 - LEAST - 0.01) == 0
    with pytest.raises(errors.NoLeader) as caught:
        attempts.failed("b:1", refused, 105 - LEAST)
    assert caught.value.outcome is Outcome.FAILED
    brief = _attempts(kind, timeout=0.1)
    assert brief.failed("a:1", not_sent("a:1"), 100.05) == 0, "there is time for another node, however short it is"


def test_what_is_in_doubt_is_tried_until_the_end() -> None:
    attempts = _attempts(Kind.ONCE)
    attempts.failed("a:1", LOST, 104.9)
    assert attempts.next(104.95).least == 0


@pytest.mark.parametrize("kind", Kind)
def test_what_a_node_said_is_told_rather_than_that_others_are_away(kind: Kind) -> None:
    refused = Failure(errors.NoLeader("no leader; nothing was done"), retryable=True)
    assert _final(kind, refused, not_sent("b:1")).message == "no leader; nothing was done"
    if kind is Kind.READ:
        assert isinstance(_final(kind, refused, silent("b:1")), errors.NoLeader)
    else:
        assert _final(kind, refused, LOST).outcome is Outcome.UNKNOWN


@st.composite
def _failure(draw: st.DrawFn) -> Failure:
    kind = draw(
        st.sampled_from(
            [
                errors.UnknownOutcome,
                errors.NoLeader,
                errors.NotLeader,
                errors.Unavailable,
                errors.TooManyRequests,
                errors.SessionExpired,
                errors.SessionWindow,
                errors.WrongShard,
                errors.KeyspaceNotFound,
                errors.NebulaError,
            ]
        )
    )
    error = kind()
    error.outcome = draw(st.sampled_from(Outcome))
    return Failure(error, draw(st.booleans()), draw(st.booleans()))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([Kind.WRITE, Kind.ONCE]), st.lists(_failure(), min_size=1, max_size=6))
def test_no_write_that_may_have_happened_is_called_failed(kind: Kind, failures: list[Failure]) -> None:
    attempts = _attempts(kind)
    doubt = False
    with pytest.raises(NebulaError) as caught:  # noqa: PT012
        for failure in itertools.chain(failures, itertools.repeat(Failure(errors.KeyspaceNotFound(), retryable=False))):
            # A write without a session is never sent again while it is in doubt.
            assert kind is Kind.ONCE or not doubt
            doubt |= failure.error.outcome is Outcome.UNKNOWN
            attempts.failed(attempts.next(100.0).address, failure, 100.0)
    assert caught.value.outcome is (Outcome.UNKNOWN if doubt else Outcome.FAILED)


def test_the_last_that_worked_is_kept() -> None:
    endpoints = Endpoints(["a:1", "b:1", "c:1"])
    attempts = Attempts(Kind.READ, endpoints, random.Random(1), timeout=5, now=0)
    assert attempts.next(0).address == "a:1"
    attempts.failed("a:1", Failure(errors.NoLeader(), retryable=True), 0)
    assert attempts.next(0).address == "b:1"
    attempts.worked("b:1", 0)
    assert endpoints.current == "b:1"


def test_the_leader_that_a_node_names_is_asked_next_unless_it_was_already() -> None:
    endpoints = Endpoints(["a:1", "b:1", "c:1"])
    attempts = Attempts(Kind.WRITE, endpoints, random.Random(1), timeout=5, now=0)
    for asked, named in (("a:1", "c:1"), ("c:1", "a:1"), ("b:1", "")):
        assert attempts.next(0).address == asked
        attempts.failed(asked, Failure(errors.NotLeader(), retryable=True, leader_address=named), 0)
    assert endpoints.current == "c:1"


@pytest.mark.parametrize("kind", list(Kind))
def test_who_found_no_leader_for_all_the_time_there_was_is_not_asked_first_again(kind: Kind) -> None:
    """A node that is cut off from the majority took every write for its whole time, and no other was ever asked."""
    endpoints = Endpoints(["a:1", "b:1", "c:1"])
    asked = []
    for start in (0.0, 10.0):
        attempts = Attempts(kind, endpoints, random.Random(1), timeout=1, now=start)
        asked.append(attempts.next(start).address)
        with pytest.raises(errors.NoLeader):
            attempts.failed(asked[-1], Failure(errors.NoLeader(), retryable=True), start + 1.0)
    assert asked == ["a:1", "b:1"]


def _stranger(address: str) -> Failure:
    status = grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, Metadata(), Metadata(), "unknown service")
    return failure_of(status, address, writes=True)


@pytest.mark.parametrize("kind", list(Kind))
def test_who_does_not_know_a_request_is_not_stayed_with(kind: Kind) -> None:
    """A peer address among the endpoints: once the others had failed for a moment, every call went there and failed."""
    endpoints = Endpoints(["a:1", "b:1", "c:1"])
    attempts = Attempts(kind, endpoints, random.Random(1), timeout=1, now=0)
    assert attempts.failed("a:1", not_sent("a:1"), 0) == 0
    assert attempts.failed("b:1", _stranger("b:1"), 0) == 0
    assert attempts.next(0).address == "c:1"
    attempts.worked("c:1", 0)
    assert endpoints.current == "c:1"


@pytest.mark.parametrize("kind", list(Kind))
def test_what_nobody_knows_is_told_at_once(kind: Kind) -> None:
    attempts = _attempts(kind)
    attempts.failed("a:1", _stranger("a:1"), 100)
    attempts.failed("b:1", _stranger("b:1"), 100)
    with pytest.raises(NebulaError, match="a:1 doesn't know this request; is it a peer address") as caught:
        attempts.failed("c:1", _stranger("c:1"), 100)
    assert caught.value.outcome is Outcome.FAILED
    with pytest.raises(NebulaError, match="a:1 doesn't know this request"):
        _attempts(kind, pinned="a:1").failed("a:1", _stranger("a:1"), 100)


def test_that_a_node_does_not_know_a_request_is_told_rather_than_that_others_are_away() -> None:
    refused = Failure(errors.NoLeader("no leader; nothing was done"), retryable=True)
    assert "doesn't know" in _final(Kind.WRITE, _stranger("a:1"), not_sent("b:1")).message
    assert "no leader" in _final(Kind.WRITE, refused, _stranger("b:1")).message


def test_a_node_is_asked_again_that_is_the_only_one_or_that_was_named() -> None:
    endpoints = Endpoints(["a:1"])
    attempts = Attempts(Kind.WRITE, endpoints, random.Random(1), timeout=1, now=0)
    with pytest.raises(errors.NoLeader):
        attempts.failed("a:1", Failure(errors.NoLeader(), retryable=True), 0.99)
    assert Attempts(Kind.WRITE, endpoints, random.Random(1), timeout=1, now=1).next(1).address == "a:1"
    endpoints = Endpoints(["a:1", "b:1"])
    attempts = Attempts(Kind.WRITE, endpoints, random.Random(1), timeout=1, now=0, pinned="a:1")
    with pytest.raises(errors.NoLeader):
        attempts.failed("a:1", Failure(errors.NoLeader(), retryable=True), 0.99)
    assert endpoints.current == "a:1"


def test_a_lost_node_rests_and_a_hint_is_followed_among_the_named() -> None:
    endpoints = Endpoints(["a:1", "b:1", "c:1"])
    endpoints.lost("a:1", 10.0)
    assert endpoints.current == "b:1"
    assert endpoints.pick({"b:1", "c:1"}, 10.0) == "a:1"
    endpoints.lost("b:1", 10.0)
    assert endpoints.pick({"c:1"}, 10.0 + REST / 2) in {"a:1", "b:1"}
    endpoints.hint("c:1")
    endpoints.hint("d:1")
    assert endpoints.current == "c:1"
    assert endpoints.pick((), 10.0) == "c:1"
    assert Endpoints(["a:1", " a:1 ", ""]).addresses == ["a:1"]
    with pytest.raises(errors.ConfigurationError):
        Endpoints([f"h:{n}" for n in range(MAX_ENDPOINTS + 1)])

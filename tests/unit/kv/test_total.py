"""Apply is total: any bytes give an answer, the same on every replica, and only an unknown kind stops it (S22)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import InvariantViolation, Reason
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.limits import MAX_REQUEST_BYTES
from tests.unit.kv.helpers import SMALL, Log, drain, fresh, put, run, state_hash
from tests.unit.kv.programs import txn as txn_message

u64 = st.integers(0, (1 << 64) - 1)
body = st.one_of(
    st.binary(max_size=40),
    txn_message.map(lambda message: message.SerializeToString()),
    st.builds(lambda head, tail: head.SerializeToString() + tail, txn_message, st.binary(max_size=4)),
)
commands = st.builds(
    Command,
    kind=st.sampled_from(sorted(Kind)),
    body=body,
    epoch=st.sampled_from([0, 1, (1 << 64) - 1]),
    origin=st.just(1),
    request=st.just(1),
    session=st.one_of(st.just(0), u64),
    sequence=u64,
    lowest=u64,
    chosen=u64,
    flags=st.integers(0, 255),
)


@given(st.lists(commands, max_size=12), st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=2))
@settings(max_examples=200, deadline=None)
def test_any_bytes_have_an_answer_that_slices_do_not_change(garbage: list[Command], clocks: list[int]) -> None:
    outcomes = []
    for limits in (None, SMALL):
        store, _ = fresh() if limits is None else fresh(limits)
        log = Log()
        run(store, log, put(b"a"), put(b"b"))
        answers = []
        for clock in clocks:
            answers += run(store, log, *garbage, clock=clock)
        outcomes.append((answers, state_hash(store, log), store.revision))
        assert len(answers) == len(garbage) * len(clocks)
    assert outcomes[0] == outcomes[1]


def test_an_unknown_kind_stops_the_replica_for_good() -> None:
    store, _ = fresh()
    log = Log()
    with pytest.raises(InvariantViolation, match="unknown kind 99"):
        drain(store, [log.work(put(b"a"), Command(99, b""))])
    assert (store.index, store.revision, store.get(b"a")) == (0, 1, None)
    with pytest.raises(InvariantViolation, match="used after it failed"):
        drain(store, [Log().work(put(b"a"))])


def test_a_gap_in_the_log_stops_the_replica() -> None:
    store, _ = fresh()
    with pytest.raises(InvariantViolation, match="entry 2 follows entry 0"):
        drain(store, [Log(1).work(put(b"a"))])


def test_what_the_api_would_refuse_apply_refuses_too() -> None:
    store, _ = fresh()
    answers = run(
        store,
        Log(),
        put(b""),
        Command(Kind.PUT, b"\xff"),
        put(b"k", b"x" * MAX_REQUEST_BYTES),
        Command(Kind.LEASE_EXPIRE, b"1"),
    )
    assert [a.reason for a in answers] == [
        Reason.INVALID_ARGUMENT,
        Reason.INVALID_ARGUMENT,
        Reason.REQUEST_TOO_LARGE,
        Reason.INVALID_ARGUMENT,
    ]
    assert store.revision == 1

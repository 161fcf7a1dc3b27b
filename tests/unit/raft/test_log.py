"""The log: what is in memory, what is read back, and Hypothesis against a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import InvariantViolation
from nebuladb.raft import Entry
from nebuladb.raft.log import CONFLICT_SCAN, RaftLog
from tests.unit.raft.harness import BIG, Disk, entry, log_of


def test_a_fresh_log_is_empty() -> None:
    log = RaftLog(Disk(), 0, 0)
    assert (log.last, log.last_term, log.commit, log.durable, log.term(0)) == (0, 0, 0, 0, 0)
    assert log.take() == []


def test_commit_starts_at_what_was_applied() -> None:
    assert RaftLog(Disk(entries=log_of(1, 1, 1)), 1, 2).commit == 2


@pytest.mark.parametrize(("commit", "applied"), [(4, 0), (0, 4)])
def test_a_log_that_lost_what_was_committed_is_not_opened(commit: int, applied: int) -> None:
    with pytest.raises(InvariantViolation):
        RaftLog(Disk(entries=log_of(1, 1, 1)), commit, applied)


def test_data_that_ends_before_the_log_starts_is_not_opened() -> None:
    disk = Disk(entries=log_of(1, 1, 1))
    disk.cut(2)
    with pytest.raises(InvariantViolation, match="before the log's start"):
        RaftLog(disk, 3, 1)


def test_commit_and_applied_keep_within_their_bounds() -> None:
    log = RaftLog(Disk(entries=log_of(1, 1, 1)), 0, 0)
    assert log.commit_to(2)
    assert not log.commit_to(1), "never back"
    assert log.commit == 2
    for wrong in (lambda: log.commit_to(4), lambda: log.applied_to(3)):
        with pytest.raises(InvariantViolation):
            wrong()
    log.applied_to(2)
    for wrong in (lambda: log.applied_to(1), lambda: log.cut(3)):
        with pytest.raises(InvariantViolation):
            wrong()


def log_of_a_leader(disk: Disk) -> RaftLog:
    """A hundred entries, written but not durable."""
    log = RaftLog(disk, 0, 0)
    for index in range(1, 101):
        log.append(entry(index, 1, b"x" * 26))
    disk.log.extend(log.take())
    return log


def test_what_is_applied_leaves_the_memory_and_is_read_back() -> None:
    disk = Disk()
    log = log_of_a_leader(disk)
    log.made_durable(100, 1)
    log.commit_to(90)
    assert len(log._entries) == 100, "what isn't applied is asked for soon"
    log.applied_to(80)
    assert len(log._entries) == 20
    assert log.slice(50, 100, BIG)[0].index == 50
    assert (log.term(3), log.term(80), log.term(81)) == (1, 1, 1)
    log.check()


def test_the_memory_has_a_bound_whatever_is_applied() -> None:
    log = log_of_a_leader(Disk())
    log.commit_to(95)
    log.append(entry(101, 1))
    assert len(log._entries) == 101, "what isn't durable can't be anywhere else"
    log.made_durable(97, 1)
    log.splice([entry(102, 1)])
    assert len(log._entries) == 7, "the log store has what is committed and durable"
    log.made_durable(100, 1)
    log.append(entry(103, 1))
    assert len(log._entries) == 8, "what isn't committed may have to be counted, and is bounded by the leader"
    log.check()


def test_a_conflict_is_searched_within_a_bound() -> None:
    log = RaftLog(Disk(entries=log_of(*[1] * 10, *[5] * (CONFLICT_SCAN + 90))), 0, 0)
    index, term = log.find_conflict_by_term(log.last, 1)
    assert (index, term) == (log.last - CONFLICT_SCAN, 5)
    assert log.find_conflict_by_term(index, 1) == (10, 1)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(st.just("overwrite"), st.integers(0, 6), st.integers(0, 4)),
        st.tuples(st.just("write"), st.integers(0, 3)),
        st.tuples(st.just("commit"), st.integers(0, 5)),
        st.tuples(st.just("apply"), st.integers(0, 5)),
        st.tuples(st.just("cut"), st.integers(0, 5)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS)
def test_the_log_is_a_list_whatever_is_in_memory(steps: list[tuple[str, int] | tuple[str, int, int]]) -> None:
    disk = Disk()
    log = RaftLog(disk, 0, 0)
    model: list[Entry] = []
    term = 1
    for what, number, *more in steps:
        if what == "append":
            for _ in range(number):
                model.append(entry(len(model) + 1, term, b"x" * 20))
                log.append(model[-1])
        elif what == "overwrite":
            term += 1
            keep = max(log.commit, len(model) - number)
            new = [entry(keep + 1 + i, term, b"y" * 9) for i in range(more[0])]
            if new:
                log.splice(model[log.commit : keep] + new)
                model[keep:] = new
        elif what == "write":
            taken = log.take()
            disk.write(disk.hard_state, taken)
            index = max(log.last - number, log.start)
            log.made_durable(index, log.term(index))
        elif what == "commit":
            log.commit_to(min(log.commit + number, log.last))
        elif what == "apply":
            log.applied_to(max(log.applied, min(log.commit, log.durable, log.applied + number)))
        else:
            index = min(log.start + number, log.applied)
            log.cut(index)
            if index > disk.start_at[0]:
                disk.cut(index)
        log.check()
        assert (log.last, log.last_term) == ((model[-1].index, model[-1].term) if model else (0, 0))
        assert [log.term(i) for i in range(log.start + 1, log.last + 1)] == [e.term for e in model[log.start :]]
        read: list[Entry] = []
        while log.start + len(read) < log.last:
            read.extend(log.slice(log.start + len(read) + 1, log.last, 100))
        assert read == model[log.start :]

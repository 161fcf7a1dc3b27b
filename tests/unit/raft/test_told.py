"""Appends that only tell a follower the commit index: nobody answers them, unless they don't fit."""

from __future__ import annotations

import pytest

from nebuladb.raft import MessageType
from nebuladb.raft.message import COMMIT_ONLY
from tests.unit.raft.harness import Replica, log_of
from tests.unit.raft.test_replication import ack, append, leader_of

T = MessageType


@pytest.mark.parametrize(("index", "log_term", "answers"), [(3, 2, []), (3, 1, [True]), (4, 2, [True])])
def test_what_only_tells_the_commit_index_is_answered_only_if_it_is_refused(
    index: int, log_term: int, answers: list[bool]
) -> None:
    replica = Replica(1, term=2, log=log_of(1, 1, 2))
    message = append(3, index, log_term, commit=3)
    message.hint = COMMIT_ONLY
    replica.step(message)
    assert [reply.reject for reply in replica.take()] == answers
    assert replica.raft.commit == (0 if answers else 3)


def test_who_has_all_entries_is_told_the_commit_index_and_asked_nothing() -> None:
    leader = leader_of(1)
    for follower in (2, 3):
        leader.step(ack(follower, leader.raft.term, leader.raft.last_index))
    leader.take()
    last = leader.propose()
    assert {(message.index, message.hint) for message in leader.take()} == {(last - 1, 0)}
    leader.step(ack(2, leader.raft.term, last))
    told = [message for message in leader.take() if message.type == T.APPEND]
    assert {message.receiver for message in told} == {2, 3}
    assert all(
        (message.index, message.commit, message.hint, message.entries) == (last, last, COMMIT_ONLY, ())
        for message in told
    )

"""The word to rest, at a follower (S11)."""

from __future__ import annotations

from nebuladb.raft import Message, MessageType
from nebuladb.raft.message import REST
from tests.unit.raft.harness import Replica, entry, log_of
from tests.unit.raft.test_replication import append

T = MessageType
WORD = Message(T.HEARTBEAT, 2, 1, 1, commit=1, hint=REST)


def rests(replica: Replica) -> bool:
    return replica.raft.quiet


def test_a_word_to_rest_that_an_entry_overtook_is_not_obeyed() -> None:
    """The group has woken since. Whoever slept on would miss its leader's silence, and call no election."""
    follower = Replica(1, term=1)
    follower.step(append(1, 0, 0, log_of(1), commit=1))
    follower.take()
    follower.step(WORD)
    assert rests(follower)
    assert follower.take() == [], "nobody is told: else the leader would be woken"
    follower.step(append(1, 1, 1, [entry(2, 1)], commit=1))
    assert not rests(follower)
    follower.take()
    follower.step(WORD)
    assert not rests(follower)
    assert [m.type for m in follower.take()] == [T.HEARTBEAT_REPLY]
    follower.tick(2 * follower.config.election_ticks)
    assert follower.take(T.PRE_VOTE)

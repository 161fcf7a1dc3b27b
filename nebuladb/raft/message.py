"""Raft's messages between the replicas of one group. ``node.frame`` gives them bytes, group and cluster id (S16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nebuladb.raft.entry import Entry


class MessageType(IntEnum):
    """Numbers are on the wire: never reuse one."""

    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    READ_INDEX = 9
    READ_INDEX_REPLY = 10
    TIMEOUT_NOW = 11
    SNAPSHOT = 12
    """Reserved and never sent: snapshots travel as the node's own messages (`node.frame.HostMessageType`)."""


APPEND: Final = MessageType.APPEND
APPEND_REPLY: Final = MessageType.APPEND_REPLY
HEARTBEAT: Final = MessageType.HEARTBEAT
HEARTBEAT_REPLY: Final = MessageType.HEARTBEAT_REPLY
READ_INDEX: Final = MessageType.READ_INDEX
READ_INDEX_REPLY: Final = MessageType.READ_INDEX_REPLY
"""The frequent ones, bound once: see `raft.state.LEADER`."""
LEADERS_OWN: Final = (APPEND, HEARTBEAT)
"""Only the leader of their term sends these."""
REPLIES: Final = (APPEND_REPLY, HEARTBEAT_REPLY)
"""What a leader hears all the time, mostly without anything that follows from it (`Raft.has_ready`)."""

TRANSFER: Final = 1
"""`hint` of a VOTE: the leader itself asked for this campaign."""
COMMIT_ONLY: Final = 1
"""`hint` of an APPEND without entries: it only tells the commit index. A follower that holds the entry before has
acknowledged that, or will, and doesn't answer; one that doesn't refuses it like any other."""
REST: Final = 1
"""`hint` of a HEARTBEAT: the last one until something happens (S11)."""


@dataclass(slots=True)
class Message:
    """One message. Which fields count depends on the type; the others stay 0.

    PRE_VOTE, VOTE: `index`, `log_term` of the candidate's last entry; `hint` (`TRANSFER`). Their replies: `reject`.
    APPEND: `index`, `log_term` of the entry before `entries`; `commit`; `floor`; `hint` (`COMMIT_ONLY`).
    APPEND_REPLY: `index` = last index that now matches; or, with `reject`, the refused `index` and in (`hint`,
    `log_term`) the last entry of the follower that could match.
    HEARTBEAT: `commit` (never above the receiver's match), `floor`, `hint` (`REST`), `context` = read round (0 = none),
    which its reply echoes.
    READ_INDEX: (`nonce`, `context`) name the follower's read; the reply repeats them, with `index` or `reject`.
    """

    type: int
    sender: int
    receiver: int
    term: int
    log_term: int = 0
    index: int = 0
    commit: int = 0
    floor: int = 0
    """Log index below which no replica of the group needs entries any more; followers cut their logs to it (S6)."""
    reject: bool = False
    hint: int = 0
    nonce: int = 0
    context: int = 0
    entries: Sequence[Entry] = ()

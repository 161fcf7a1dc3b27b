"""A stream and its states (RFC 9113, section 5.1), as a table."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Any, Final

from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.headers import Fields


class State(IntEnum):
    """Who has ended: bit 0 we, bit 1 the peer. *Idle* is an id that nobody opened; *reserved* needs PUSH, which is
    off."""

    OPEN = 0
    HALF_CLOSED_LOCAL = 1
    HALF_CLOSED_REMOTE = 2
    CLOSED = 3


class Act(IntEnum):
    """What may happen to a stream that somebody opened."""

    RECEIVE = 0
    """HEADERS or DATA."""
    RECEIVE_END = 1
    """One of them with END_STREAM."""
    SEND = 2
    SEND_END = 3
    RESET = 4
    """RST_STREAM of either side."""


TRANSITIONS: Final[dict[tuple[State, Act], State | ErrorCode]] = {
    (State.OPEN, Act.RECEIVE): State.OPEN,
    (State.OPEN, Act.RECEIVE_END): State.HALF_CLOSED_REMOTE,
    (State.OPEN, Act.SEND): State.OPEN,
    (State.OPEN, Act.SEND_END): State.HALF_CLOSED_LOCAL,
    (State.OPEN, Act.RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Act.RECEIVE): State.HALF_CLOSED_LOCAL,
    (State.HALF_CLOSED_LOCAL, Act.RECEIVE_END): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Act.SEND): ErrorCode.STREAM_CLOSED,
    (State.HALF_CLOSED_LOCAL, Act.SEND_END): ErrorCode.STREAM_CLOSED,
    (State.HALF_CLOSED_LOCAL, Act.RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Act.RECEIVE): ErrorCode.STREAM_CLOSED,
    (State.HALF_CLOSED_REMOTE, Act.RECEIVE_END): ErrorCode.STREAM_CLOSED,
    (State.HALF_CLOSED_REMOTE, Act.SEND): State.HALF_CLOSED_REMOTE,
    (State.HALF_CLOSED_REMOTE, Act.SEND_END): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Act.RESET): State.CLOSED,
    (State.CLOSED, Act.RECEIVE): ErrorCode.STREAM_CLOSED,
    (State.CLOSED, Act.RECEIVE_END): ErrorCode.STREAM_CLOSED,
    (State.CLOSED, Act.SEND): ErrorCode.STREAM_CLOSED,
    (State.CLOSED, Act.SEND_END): ErrorCode.STREAM_CLOSED,
    (State.CLOSED, Act.RESET): State.CLOSED,
}
"""(state, act) → the next state, or the code of the error that the act is: the peer's if it sent, our owner's if it
did."""

OPEN: Final = State.OPEN
HALF_CLOSED_LOCAL: Final = State.HALF_CLOSED_LOCAL
HALF_CLOSED_REMOTE: Final = State.HALF_CLOSED_REMOTE
CLOSED: Final = State.CLOSED


class Stream:
    """One exchange. The owner may read all of it and write `owner`; the rest is the connection's.

    Windows are counted from the setting that they start at, so that a changed INITIAL_WINDOW_SIZE (section 6.9.2) moves
    all of them at once: we may send `Settings.stream_window + credit` octets, and the peer our own window less `unread`
    and `taken`.
    """

    __slots__ = (
        "answered",
        "credit",
        "expected",
        "heard",
        "id",
        "owner",
        "queue",
        "reset",
        "state",
        "tail",
        "taken",
        "unread",
        "waiting",
    )

    def __init__(self, stream_id: int, state: State) -> None:
        self.id: int = stream_id
        self.state: State = state
        self.owner: Any = None
        """The upper layer's object for this stream."""
        self.waiting: int = 0
        """Octets of `queue`: what was to be sent and found no window."""
        self.queue: deque[memoryview] | None = None
        self.tail: Fields | bool | None = None
        """What ends the stream when the queue is empty: trailers, or True for END_STREAM on the last octets."""
        self.credit: int = 0
        self.unread: int = 0
        """Octets that the owner got and has not said `consumed` of."""
        self.taken: int = 0
        """Octets that it consumed and the peer was not told of yet."""
        self.expected: int = -1
        """Octets of body that content-length still promises; -1: it said nothing."""
        self.heard: bool = False
        """The peer's final headers are here (not only informational ones)."""
        self.answered: bool = False
        """Our headers were sent; what follows may be data and trailers."""
        self.reset: bool = False
        """Ended by RST_STREAM, of either side. Whatever is still sent on it goes nowhere, silently."""

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.state.name} waiting={self.waiting}>"

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


OPEN: Final = State.OPEN
HALF_CLOSED_LOCAL: Final = State.HALF_CLOSED_LOCAL
HALF_CLOSED_REMOTE: Final = State.HALF_CLOSED_REMOTE
CLOSED: Final = State.CLOSED

RECEIVE: Final = Act.RECEIVE
RECEIVE_END: Final = Act.RECEIVE_END
SEND: Final = Act.SEND
SEND_END: Final = Act.SEND_END

_OVER: Final = ErrorCode.STREAM_CLOSED

TRANSITIONS: Final[tuple[tuple[State | ErrorCode, ...], ...]] = (
    # RECEIVE, RECEIVE_END, SEND, SEND_END, RESET
    (OPEN, HALF_CLOSED_REMOTE, OPEN, HALF_CLOSED_LOCAL, CLOSED),  # OPEN
    (HALF_CLOSED_LOCAL, CLOSED, _OVER, _OVER, CLOSED),  # HALF_CLOSED_LOCAL
    (_OVER, _OVER, HALF_CLOSED_REMOTE, CLOSED, CLOSED),  # HALF_CLOSED_REMOTE
    (_OVER, _OVER, _OVER, _OVER, CLOSED),  # CLOSED
)
"""State, then act → the next state, or the code of the error that the act is: the peer's if it received, our owner's
if it sent. Tuples, since the hash of an enumeration's member is a call into Python."""


class Stream:
    """One exchange. The owner may read all of it and write `owner`; the rest is the connection's.

    Windows are counted from the setting that they start at, so that a changed INITIAL_WINDOW_SIZE (section 6.9.2) moves
    all of them at once: we may send `PeerSettings.stream_window + credit` octets, and the peer our own window less
    `unread` and `taken`.
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

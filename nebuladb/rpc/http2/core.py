"""What both directions of a connection share: its state, the output, and how a stream and the connection end."""

from __future__ import annotations

import sys
from typing import Final

from nebuladb.errors import invariant
from nebuladb.rpc.http2.decoder import HeaderDecoder
from nebuladb.rpc.http2.encoder import HeaderEncoder
from nebuladb.rpc.http2.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from nebuladb.rpc.http2.events import ConnectionEnded, Event, StreamReset, StreamsAllowed
from nebuladb.rpc.http2.frames import (
    DEFAULT_WINDOW,
    MAX_STREAM_ID,
    MIN_FRAME_SIZE,
    PREFACE,
    goaway_frame,
    reset_frame,
    window_update_frame,
)
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.settings import PeerSettings, announcement
from nebuladb.rpc.http2.stream import CLOSED, HALF_CLOSED_LOCAL, OPEN, Stream

LARGEST_FRAME: Final = 1 << 16
"""Octets of the largest DATA that we send, whatever the peer takes: streams that wait for one window share it by
frames."""

MAX_REMEMBERED: Final = 1 << 15
"""Streams that a client remembers to have reset, if its server allows so many at once: it may cancel all of them."""


class Core:
    """State of a connection, and what ends its parts.

    Invariants:
    - `streams` holds exactly the streams that are neither closed nor idle.
    - `_unread` and `waiting` are the sums of the streams' (those that ended with data unread still count for the
      former).
    - The peer may send `_connection_window - _unread - _taken` octets more, and we `_window`.
    - A stream is in `_sendable` if and only if octets of it wait and its own window is open. If `_window` is open as
      well, `_sendable` is empty between calls, or `held_back` is set.
    """

    __slots__ = (
        "_answers",
        "_ceiling",
        "_connection_window",
        "_decoder",
        "_encoder",
        "_events",
        "_frame_out",
        "_last_in",
        "_next_id",
        "_out",
        "_pumped",
        "_refused",
        "_resets",
        "_sendable",
        "_stream_window",
        "_stream_window_low",
        "_taken",
        "_unread",
        "_updates_earned",
        "_window",
        "at_once",
        "client",
        "closed",
        "going_away",
        "held_back",
        "limits",
        "news",
        "peer",
        "ready",
        "streams",
        "waiting",
        "whole_responses",
    )

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        """Those that are open, by id."""
        self.closed = False
        """Nothing is received or sent any more; `take` may still have octets."""
        self.going_away = False
        """No new streams: the peer said so, or we did."""
        self.ready = False
        """The peer's preface and SETTINGS are here."""
        self.peer = PeerSettings()
        """The peer's settings, as of its last SETTINGS."""
        self.waiting = 0
        """Octets of all streams that wait for the peer's windows."""
        self.whole_responses = False
        """A client's owner sets it to get `ResponseReceived`."""
        self.at_once = sys.maxsize
        """Octets of what waited that may go into the output at once; the owner sets it, and `pump`s for the rest."""
        self.held_back = False
        """Octets wait for `pump` alone."""
        self.news = False
        """The owner's own doing has made events, maybe: `told` gives them."""
        self._encoder = HeaderEncoder()
        self._decoder = HeaderDecoder(limits)
        self._events: list[Event] = []
        self._out: list[bytes | memoryview] = [PREFACE] if client else []
        self._answers = 0
        self._next_id = 1
        self._last_in = 0
        self._ceiling = MAX_STREAM_ID
        """Streams of the peer above it are not looked at: what our GOAWAY said."""
        self._resets: dict[int, None] = {}
        """Streams that we reset, oldest first."""
        self._refused = False
        """`open` raised StreamLimit, so that StreamsAllowed is owed."""
        self._sendable: dict[int, Stream] = {}
        self._pumped = 0
        """Octets of what waited that went into the output since the last `pump`."""
        self._frame_out = MIN_FRAME_SIZE
        self._window = DEFAULT_WINDOW
        # Until the peer has acknowledged our settings it may count with the defaults.
        self._stream_window = max(limits.stream_window, DEFAULT_WINDOW)
        self._stream_window_low = max(1, limits.stream_window // 2)
        self._connection_window = max(limits.connection_window, DEFAULT_WINDOW)
        self._unread = 0
        self._taken = 0
        self._updates_earned = 0
        """WINDOW_UPDATEs that the peer may send without cause to doubt it, for DATA that it got."""
        self._out.append(announcement(limits, client=client))
        if self._connection_window > DEFAULT_WINDOW:
            self._out.append(window_update_frame(0, self._connection_window - DEFAULT_WINDOW))

    def take(self) -> bytes:
        """The octets to send now; b"" if there are none. The connection's window goes back with them, when half of it
        has come together that isn't held by those who read nothing."""
        out = self._out
        taken = self._taken
        if taken and taken >= (self._connection_window - self._unread) // 2 and not self.closed:
            out.append(window_update_frame(0, taken))
            self._taken = 0
        if not out:
            return b""
        self._answers = 0
        data = b"".join(out)
        # The list stays the same object: nobody has to look it up again.
        out.clear()
        return data

    def told(self) -> list[Event]:
        """Events that the owner's own doing has made. Else they would wait for what the peer says next, and it may have
        nothing to say."""
        self.news = False
        events, self._events = self._events, []
        return events

    def _answer(self, frame: bytes) -> None:
        """Write what the peer made us write."""
        self._answers += 1
        if self._answers > self.limits.answers:
            raise RemoteProtocolError("answers are not read", ErrorCode.ENHANCE_YOUR_CALM)
        self._out.append(frame)

    def consumed(self, stream: Stream, size: int) -> None:
        """The owner took `size` octets of the stream's data; the peer is told when half a window has come together:
        of the stream's window here, of the connection's by `take`.

        Raises:
            LocalProtocolError: it never got so many.
        """
        if stream.reset or self.closed:
            return
        if size > stream.unread:
            raise LocalProtocolError(f"{size} octets of stream {stream.id} consumed, {stream.unread} were there")
        stream.unread -= size
        self._unread -= size
        self._taken += size
        if stream.state is OPEN or stream.state is HALF_CLOSED_LOCAL:
            stream.taken += size
            if stream.taken >= self._stream_window_low:
                self._out.append(window_update_frame(stream.id, stream.taken))
                stream.taken = 0

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """RST_STREAM; what waited is dropped. Nothing happens to a stream that is over."""
        if stream.state is CLOSED or self.closed:
            return
        self._out.append(reset_frame(stream.id, code))
        self._remember_reset(stream.id)
        self._abandon(stream)

    def _remember_reset(self, stream_id: int) -> None:
        resets = self._resets
        most = self.limits.remembered_resets
        if self.client:
            most = max(most, min(self.peer.concurrent_streams, MAX_REMEMBERED))
        if len(resets) >= most:
            del resets[next(iter(resets))]
        resets[stream_id] = None

    def _abandon(self, stream: Stream) -> None:
        """The stream ends by a reset of either side: forget what waited, give back what nobody will consume."""
        self._drop_waiting(stream)
        stream.reset = True
        self._unread -= stream.unread
        self._taken += stream.unread
        stream.unread = 0
        self._finish(stream)

    def check(self) -> None:
        """The invariants above.

        Raises:
            InvariantViolation: one is broken.
        """
        streams = self.streams
        window = self.peer.stream_window
        invariant(all(stream.state is not CLOSED for stream in streams.values()), "a closed stream is held as open")
        invariant(self.waiting == sum(stream.waiting for stream in streams.values()), "waiting octets are miscounted")
        invariant(self._unread >= sum(stream.unread for stream in streams.values()), "unread octets are miscounted")
        invariant(0 <= self._unread + self._taken <= self._connection_window, "the peer has more than its window")
        sendable = {key for key, stream in streams.items() if stream.waiting and window + stream.credit > 0}
        invariant(self.closed or self._sendable.keys() == sendable, "a stream is wrongly held as sendable, or not held")
        invariant(
            self.closed or not sendable or self._window <= 0 or self.held_back, "octets wait in front of open windows"
        )
        for stream in streams.values():
            queued = sum(len(piece) for piece in stream.queue or ())
            invariant(stream.waiting == queued, "a stream's waiting octets are miscounted")

    def _drop_waiting(self, stream: Stream) -> None:
        self.waiting -= stream.waiting
        stream.waiting = 0
        stream.queue = None
        stream.tail = None
        self._sendable.pop(stream.id, None)

    def _finish(self, stream: Stream) -> None:
        """The stream is closed."""
        stream.state = CLOSED
        del self.streams[stream.id]
        if self._refused:
            self._allow_again()

    def _allow_again(self) -> None:
        if self.going_away:
            self._refused = False
        elif len(self.streams) < self.peer.concurrent_streams:
            self._refused = False
            self.news = True
            self._events.append(StreamsAllowed())

    def _lose(self, stream: Stream, code: ErrorCode, *, unprocessed: bool = False) -> None:
        """Tell the owner that a stream ended without its doing."""
        self._events.append(StreamReset(stream, code, unprocessed))

    def _fail(self, error: ProtocolError) -> None:
        """The peer broke the protocol: GOAWAY, and nothing after it."""
        self._end(error.code, error.message)
        self._events.append(ConnectionEnded(error.code, error.message))

    def _end(self, code: ErrorCode, message: str) -> None:
        debug = message.encode("utf-8", "backslashreplace")[: self.limits.debug_bytes]
        self._out.append(goaway_frame(self._last_in if not self.client else 0, code, debug))
        self.closed = True
        self.going_away = True
        for stream in self.streams.values():
            self._drop_waiting(stream)

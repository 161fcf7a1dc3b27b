"""What the peer says of the connection itself, of windows, and of a stream's end (RFC 9113, sections 6.3 to 6.9)."""

from __future__ import annotations

from nebuladb.rpc.http2 import frames
from nebuladb.rpc.http2.core import LARGEST_FRAME
from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError, StreamError
from nebuladb.rpc.http2.events import GoingAway, PingAcknowledged
from nebuladb.rpc.http2.floods import Bucket
from nebuladb.rpc.http2.frames import ACK, MAX_STREAM_ID, MAX_WINDOW, WORD
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.sending import Sending
from nebuladb.rpc.http2.stream import HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE


class Control(Sending):
    """Adds the frames that carry no part of a message. Each method takes one, whose length and stream it checks."""

    __slots__ = ("_floods", "_granted", "_last_out", "_now", "_pings", "_sent_at", "_unacknowledged")

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self._now = 0.0
        """The owner's clock, as of the last `receive`."""
        self._floods: dict[str, Bucket] = {}
        """By the name of the rate in `Limits`; a connection that behaves has few."""
        self._unacknowledged = 1
        """SETTINGS of ours that the peer has not acknowledged."""
        self._granted = self._window
        """Octets that the peer ever allowed the connection to send."""
        self._sent_at: dict[str, int] = {}
        """Octets of DATA that we had sent when the last of what a rate bounds came."""
        self._pings = 0
        """Pings of ours that the peer has not acknowledged."""
        self._last_out = MAX_STREAM_ID
        """The last stream that the peer will look at: what its GOAWAY said."""

    def _flood(self, what: str) -> None:
        """One more of what a rate bounds."""
        bucket = self._floods.get(what)
        if bucket is None:
            bucket = self._floods[what] = Bucket(what, getattr(self.limits, what))
        bucket.drop(self._now)

    def _flood_unless_sent(self, what: str) -> None:
        """The same of what peers do in answer to DATA: the first since we sent some is free, for our data sets its
        pace."""
        # All that we ever sent is what we might have sent less what we still may.
        sent = self._granted - self._window
        if self._sent_at.get(what) == sent:
            self._flood(what)
        else:
            self._sent_at[what] = sent

    def _is_idle(self, stream_id: int) -> bool:
        """Nobody opened it yet."""
        if self.client:
            return stream_id % 2 == 0 or stream_id >= self._next_id
        # Streams above the ceiling were opened and not looked at.
        return stream_id % 2 == 0 or self._last_in < stream_id <= self._ceiling

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._flood("ignored")
        if not stream_id:
            raise RemoteProtocolError("PRIORITY on stream 0")
        if len(payload) != 5:
            raise RemoteProtocolError("PRIORITY of a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        check_dependency(stream_id, payload)

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != WORD.size:
            raise RemoteProtocolError("RST_STREAM of a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        if self._is_idle(stream_id):
            raise RemoteProtocolError(f"RST_STREAM on idle stream {stream_id}")
        stream, code = self.streams.get(stream_id), _error_code(WORD.unpack(payload)[0])
        if stream is None or stream.state is HALF_CLOSED_LOCAL:
            # We have said all that we had to say: this ends nothing that works.
            self._flood_unless_sent("ignored")
        elif not (self.client and stream.state is HALF_CLOSED_REMOTE and code is ErrorCode.NO_ERROR):
            # Else the answer is whole, and the server wants no more of the request (section 8.1 of RFC 9113).
            self._flood("resets")
        if stream is not None:
            self._abandon(stream)
            self._lose(stream, code, unprocessed=code is ErrorCode.REFUSED_STREAM)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise RemoteProtocolError("SETTINGS on a stream")
        if flags & ACK:
            self._on_settings_ack(payload)
            return
        self._flood("settings")
        peer = self.peer
        if not self.ready:
            # It may say nothing of it, and then there is none.
            peer.concurrent_streams = MAX_STREAM_ID
        window = peer.stream_window
        peer.apply(payload, from_server=self.client)
        self.ready = True
        self._frame_out = min(peer.frame_size, LARGEST_FRAME)
        self._encoder.resize(peer.header_table)
        self._answer(frames.SETTINGS_ACK)
        if peer.stream_window != window:
            for stream in list(self.streams.values()):
                if peer.stream_window + stream.credit > MAX_WINDOW:
                    raise RemoteProtocolError("a window over 2^31 - 1", ErrorCode.FLOW_CONTROL_ERROR)
                self._window_moved(stream)
        if self._refused:
            self._allow_again()

    def _on_settings_ack(self, payload: bytes) -> None:
        if payload:
            raise RemoteProtocolError("an acknowledgement with content", ErrorCode.FRAME_SIZE_ERROR)
        if not self._unacknowledged:
            raise RemoteProtocolError("an acknowledgement of no SETTINGS")
        self._unacknowledged -= 1
        self._stream_window = self.limits.stream_window
        self._decoder.allow_table(self.limits.header_table)

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise RemoteProtocolError("PUSH_PROMISE, and pushing is off")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise RemoteProtocolError("PING on a stream")
        if len(payload) != 8:
            raise RemoteProtocolError("PING of a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        self._flood_unless_sent("pings")
        if flags & ACK:
            if not self._pings:
                self._flood("ignored")
                return
            self._pings -= 1
            self._events.append(PingAcknowledged(payload))
        else:
            self._answer(frames.frame(frames.PING, ACK, 0, payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise RemoteProtocolError("GOAWAY on a stream")
        if len(payload) < 8:
            raise RemoteProtocolError("GOAWAY of a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        self._flood("settings")
        last = WORD.unpack_from(payload)[0] & MAX_STREAM_ID
        code = _error_code(WORD.unpack_from(payload, 4)[0])
        if last > self._last_out:
            raise RemoteProtocolError("GOAWAY takes back what an earlier one said")
        self._last_out = last
        self.going_away = True
        self._refused = False
        self._events.append(GoingAway(code, last, payload[8 : 8 + self.limits.debug_bytes]))
        if self.client:
            for stream in [stream for stream in self.streams.values() if stream.id > last]:
                self._abandon(stream)
                self._lose(stream, ErrorCode.REFUSED_STREAM, unprocessed=True)

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != WORD.size:
            raise RemoteProtocolError("WINDOW_UPDATE of a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        size = WORD.unpack(payload)[0] & MAX_WINDOW
        if self._updates_earned:
            self._updates_earned -= 1
        else:
            self._flood_unless_sent("window_updates")
        if not stream_id:
            if not size:
                raise RemoteProtocolError("WINDOW_UPDATE of 0")
            self._granted += size
            self._window += size
            if self._window > MAX_WINDOW:
                raise RemoteProtocolError("a window over 2^31 - 1", ErrorCode.FLOW_CONTROL_ERROR)
            self._pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise RemoteProtocolError(f"WINDOW_UPDATE on idle stream {stream_id}")
            return
        if not size:
            raise StreamError("WINDOW_UPDATE of 0")
        stream.credit += size
        if self.peer.stream_window + stream.credit > MAX_WINDOW:
            raise StreamError("a window over 2^31 - 1", ErrorCode.FLOW_CONTROL_ERROR)
        self._window_moved(stream)


def check_dependency(stream_id: int, payload: bytes) -> None:
    """The five octets of a priority (section 6.3), at a payload's start: all that matters is that they are possible.

    Raises:
        RemoteProtocolError: they are cut short, or the stream depends on itself.
    """
    if len(payload) < 5:
        raise RemoteProtocolError("a priority cut short", ErrorCode.FRAME_SIZE_ERROR)
    if WORD.unpack_from(payload)[0] & MAX_STREAM_ID == stream_id:
        raise RemoteProtocolError(f"stream {stream_id} depends on itself")


def _error_code(value: int) -> ErrorCode:
    """Section 7: an unknown code is treated as INTERNAL_ERROR."""
    try:
        return ErrorCode(value)
    except ValueError:
        return ErrorCode.INTERNAL_ERROR

"""What carries messages: DATA, HEADERS, CONTINUATION (RFC 9113, sections 6.1, 6.2 and 6.10)."""

from __future__ import annotations

from typing import Final

from nebuladb.rpc.http2 import frames
from nebuladb.rpc.http2.control import Control, check_dependency
from nebuladb.rpc.http2.decoder import TOO_LARGE
from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError, StreamError
from nebuladb.rpc.http2.events import DataReceived, HeadersReceived
from nebuladb.rpc.http2.frames import ACK, END_HEADERS, END_STREAM, PADDED, PRIORITISED, reset_frame
from nebuladb.rpc.http2.headers import HeaderBlock, Kind
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.stream import (
    CLOSED,
    HALF_CLOSED_LOCAL,
    HALF_CLOSED_REMOTE,
    OPEN,
    RECEIVE,
    RECEIVE_END,
    TRANSITIONS,
    State,
    Stream,
)


class Fragment:
    """A header block whose end has not come."""

    __slots__ = ("block", "count", "ended", "stream_id")

    def __init__(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        self.stream_id = stream_id
        self.ended = ended
        self.block = bytearray(block)
        self.count = 0


class Receiving(Control):
    """Adds the frames of messages, and where each type of frame goes.

    A method that takes a frame raises RemoteProtocolError (this connection ends) or StreamError (its stream does).
    """

    __slots__ = ("_fragment",)

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self._fragment: Fragment | None = None

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any frame, with all the rules."""
        if not self.ready and (kind != frames.SETTINGS or flags & ACK):
            raise RemoteProtocolError("SETTINGS must come first")
        if self._fragment is not None and (kind != frames.CONTINUATION or self._fragment.stream_id != stream_id):
            raise RemoteProtocolError("a header block was cut by another frame")
        try:
            if kind < len(_HANDLERS):
                _HANDLERS[kind](self, flags, stream_id, payload)
            else:
                self._flood("ignored")
        except StreamError as error:
            self._stream_fault(stream_id, error)

    def _stream_fault(self, stream_id: int, error: StreamError) -> None:
        """The peer broke a rule of a stream: reset it. That it made us do so counts as a reset of its own."""
        self._flood("resets")
        stream = self.streams.get(stream_id)
        self._remember_reset(stream_id)
        self._answer(reset_frame(stream_id, error.code))
        if stream is not None:
            self._abandon(stream)
            self._lose(stream, error.code)

    def _peer_sends(self, stream: Stream, *, ended: bool) -> State:
        """The state that HEADERS or DATA lead to."""
        state = TRANSITIONS[stream.state][RECEIVE_END if ended else RECEIVE]
        if isinstance(state, ErrorCode):
            raise StreamError("a frame behind the end of its stream", state)
        return state

    def _move(self, stream: Stream, state: State) -> None:
        if state is CLOSED:
            self._finish(stream)
        else:
            stream.state = state

    def _part(self, stream_id: int, payload: bytes) -> bool:
        """DATA without flags from the middle of a body, with nothing to check. False: it isn't that, and not handled.

        (A stream whose headers were heard says that SETTINGS came before them.)
        """
        stream = self.streams.get(stream_id)
        size = len(payload)
        if (
            stream is None
            or not size
            or not stream.heard
            or stream.expected >= 0
            or not (stream.state is OPEN or stream.state is HALF_CLOSED_LOCAL)
            or stream.unread + stream.taken + size > self._stream_window
            or self._unread + self._taken + size > self._connection_window
            or self._fragment is not None
        ):
            return False
        stream.unread += size
        self._unread += size
        self._events.append(DataReceived(stream, payload, ended=False))
        return True

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if self._unread + self._taken + size > self._connection_window:
            raise RemoteProtocolError("more DATA than the connection's window", ErrorCode.FLOW_CONTROL_ERROR)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._taken += size
            self._check_closed(stream_id)
            return
        # All octets of the frame count, padding and those of a frame that is wrong too; but nobody else consumes these.
        self._taken += size
        if flags & PADDED:
            payload = _unpadded(payload)
        content = len(payload)
        ended = bool(flags & END_STREAM)
        state = self._peer_sends(stream, ended=ended)
        self._check_data(stream, size, content, ended=ended)
        stream.unread += size
        self._taken -= size
        self._unread += size
        if content or ended:
            self._move(stream, state)
            self._events.append(DataReceived(stream, payload, ended))
        else:
            self._flood("empty")
        if size > content:
            self.consumed(stream, size - content)

    def _check_data(self, stream: Stream, size: int, content: int, *, ended: bool) -> None:
        """DATA of `size` octets, `content` without padding, against windows and content-length."""
        if stream.unread + stream.taken + size > self._stream_window:
            raise StreamError("more DATA than the stream's window", ErrorCode.FLOW_CONTROL_ERROR)
        if not stream.heard:
            raise StreamError("DATA before headers")
        if stream.expected >= 0:
            stream.expected -= content
            if stream.expected < 0 or (ended and stream.expected):
                raise StreamError("DATA is not what content-length says")

    def _check_closed(self, stream_id: int) -> None:
        """A frame on a stream that isn't open may come if we reset it; else it is the peer's error (section 5.1)."""
        if self._is_idle(stream_id):
            raise RemoteProtocolError(f"a frame on idle stream {stream_id}")
        if stream_id not in self._resets and stream_id <= self._ceiling:
            raise RemoteProtocolError(f"a frame on closed stream {stream_id}", ErrorCode.STREAM_CLOSED)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (PADDED | PRIORITISED):
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & PRIORITISED:
                check_dependency(stream_id, payload)
                payload = payload[5:]
        if stream_id % 2 == 0:
            raise RemoteProtocolError(f"HEADERS on stream {stream_id}")
        ended = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._on_list(stream_id, self._decoder.decode(payload), ended=ended)
        else:
            self._fragment = Fragment(stream_id, payload, ended=ended)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        fragment = self._fragment
        if fragment is None:
            raise RemoteProtocolError("CONTINUATION of nothing")
        fragment.block += payload
        fragment.count += 1
        if fragment.count > self.limits.continuations or len(fragment.block) > self.limits.header_block:
            raise RemoteProtocolError("header block too large", ErrorCode.ENHANCE_YOUR_CALM)
        if flags & END_HEADERS:
            self._fragment = None
            self._on_list(stream_id, self._decoder.decode(bytes(fragment.block)), ended=fragment.ended)

    def _on_list(self, stream_id: int, block: HeaderBlock, *, ended: bool) -> None:
        """A whole header list; the stream id is odd. It was decoded whatever becomes of it, for the table's sake."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.client or stream_id <= self._last_in:
                self._check_closed(stream_id)
            elif stream_id <= self._ceiling:
                self._on_request(stream_id, block, ended=ended)
            # Above it nobody looks, as our GOAWAY said.
            return
        state = self._peer_sends(stream, ended=ended)
        if block.fault:
            raise _malformed(block)
        if stream.heard:
            if not ended or block.kind is not Kind.TRAILERS:
                raise StreamError("second headers that are no trailers")
            if stream.expected > 0:
                raise StreamError("less DATA than content-length says")
        elif block.kind is Kind.INFORMATIONAL and not ended:
            self._flood("ignored")
            return
        elif block.kind is not Kind.RESPONSE:
            raise StreamError("not a response")
        else:
            self._begin(stream, block, ended=ended)
        self._move(stream, state)
        self._events.append(HeadersReceived(stream, block, None, ended))

    def _on_request(self, stream_id: int, block: HeaderBlock, *, ended: bool) -> None:
        self._last_in = stream_id
        if len(self.streams) >= self.limits.concurrent_streams:
            raise StreamError("too many streams", ErrorCode.REFUSED_STREAM)
        if block.fault:
            raise _malformed(block)
        if block.kind is not Kind.REQUEST:
            raise StreamError("not a request")
        stream = Stream(stream_id, HALF_CLOSED_REMOTE if ended else OPEN)
        self._begin(stream, block, ended=ended)
        self.streams[stream_id] = stream
        self._events.append(HeadersReceived(stream, block, None, ended))

    def _begin(self, stream: Stream, block: HeaderBlock, *, ended: bool) -> None:
        """The headers that a body may follow."""
        if ended and block.length > 0:
            raise StreamError("no DATA where content-length promises it")
        stream.expected = block.length
        stream.heard = True


def _malformed(block: HeaderBlock) -> StreamError:
    too_large = block.fault is TOO_LARGE
    return StreamError(block.fault, ErrorCode.ENHANCE_YOUR_CALM if too_large else ErrorCode.PROTOCOL_ERROR)


def _unpadded(payload: bytes) -> bytes:
    """Section 6.1: an octet says how many at the end mean nothing."""
    if not payload:
        raise RemoteProtocolError("padding without its length", ErrorCode.FRAME_SIZE_ERROR)
    if payload[0] >= len(payload):
        raise RemoteProtocolError("more padding than frame")
    return payload[1 : len(payload) - payload[0]]


_HANDLERS: Final = (
    Receiving._on_data,
    Receiving._on_headers,
    Receiving._on_priority,
    Receiving._on_reset,
    Receiving._on_settings,
    Receiving._on_push_promise,
    Receiving._on_ping,
    Receiving._on_goaway,
    Receiving._on_window_update,
    Receiving._on_continuation,
)
"""By frame type."""

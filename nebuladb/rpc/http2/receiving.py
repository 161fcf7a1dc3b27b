"""The way in: octets to frames, frames to events."""

from __future__ import annotations

from typing import Final

from nebuladb.rpc.http2 import frames
from nebuladb.rpc.http2.control import Control, check_dependency
from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError, StreamError
from nebuladb.rpc.http2.events import DataReceived, Event, HeadersReceived
from nebuladb.rpc.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEAD_SIZE,
    MAX_STREAM_ID,
    PADDED,
    PREFACE,
    PRIORITISED,
    reset_frame,
)
from nebuladb.rpc.http2.headers import HeaderBlock, Kind
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.stream import CLOSED, HALF_CLOSED_REMOTE, OPEN, TRANSITIONS, Act, State, Stream

_NOTHING: Final[dict[bytes, HeaderBlock]] = {}
"""No known blocks: every frame takes the long way."""


class Receiving(Control):
    """Adds what the peer sends.

    `receive` splits frames; each goes to the method of its type, which raises RemoteProtocolError (this connection
    ends) or StreamError (its stream does). The frames of a unary call are read in the loop itself.
    """

    __slots__ = ("_fragment", "_preface", "_rest")

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self._rest = b""
        """A frame that has not come whole."""
        self._preface = b"" if client else PREFACE
        """What is still missing of the client's."""
        self._fragment: Fragment | None = None

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What `data` brings, in order. `now`: seconds, monotonic. Never raises for what the peer did."""
        if self.closed:
            return []
        self._now = now
        try:
            if self._preface:
                data = self._strip_preface(data)
            self._rest = self._frames(self._rest + data if self._rest else data)
            if self._taken >= self._taken_enough:
                self._announce()
        except RemoteProtocolError as error:
            self._rest = b""
            self._fragment = None
            self._fail(error)
        events = self._events
        self._events = []
        return events

    def _strip_preface(self, data: bytes) -> bytes:
        missing = self._preface
        if not missing.startswith(data[: len(missing)]):
            raise RemoteProtocolError("this is not HTTP/2")
        self._preface = missing[len(data) :]
        return data[len(missing) :]

    def _frames(self, data: bytes) -> bytes:
        """Handle all whole frames; what is left over.

        The shape of every unary request, a HEADERS with a block that was seen before and a DATA that ends the stream,
        is recognised here by comparisons alone and becomes one event: calls of methods would cost more than all the
        rest. Whatever differs in anything takes the long way (`_frame`), which knows all the rules.
        """
        unpack = HEAD.unpack_from
        streams = self.streams
        events = self._events
        most_streams = self.limits.concurrent_streams
        most_data = min(self.limits.frame_size, self._stream_window)
        ceiling = self._ceiling
        window = self._connection_window - self._unread
        known = self._known()
        at, end = 0, len(data)
        while end - at >= HEAD_SIZE:
            head, flags, stream_id = unpack(data, at)
            start = at + HEAD_SIZE
            after = start + (head >> 8)
            if after + HEAD_SIZE <= end and flags == END_HEADERS and head & 0xFF == frames.HEADERS:
                block = known.get(data[start:after])
                if block is not None and block.kind == Kind.REQUEST and block.length < 0 and stream_id & 1:
                    head, flags, second_id = unpack(data, after)
                    size = head >> 8
                    start = after + HEAD_SIZE
                    if (
                        second_id == stream_id
                        and flags == END_STREAM
                        and not head & 0xFF
                        and start + size <= end
                        and size <= most_data
                        and self._last_in < stream_id <= ceiling
                        and len(streams) < most_streams
                        and self._taken + size <= window
                    ):
                        self._last_in = stream_id
                        self._taken += size
                        stream = streams[stream_id] = Stream(stream_id, HALF_CLOSED_REMOTE)
                        at = start + size
                        events.append(HeadersReceived(stream, block, data[start:at], True))  # noqa: FBT003 - a keyword costs 60 ns
                        continue
                    head, flags, stream_id = unpack(data, at)
                    start = at + HEAD_SIZE
            if head >> 8 > self.limits.frame_size:
                raise RemoteProtocolError(f"a frame of {head >> 8} octets", ErrorCode.FRAME_SIZE_ERROR)
            if after > end:
                break
            self._frame(head & 0xFF, flags, stream_id & MAX_STREAM_ID, data[start:after])
            at = after
            # Whatever it was may have changed any of these.
            known = self._known()
            window = self._connection_window - self._unread
            most_data = min(self.limits.frame_size, self._stream_window)
        return data[at:]

    def _known(self) -> dict[bytes, HeaderBlock]:
        """Blocks that may take the short way now."""
        if self.client or self._fragment is not None or not self.ready:
            return _NOTHING
        return self._decoder.known

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self.ready and (kind != frames.SETTINGS or flags & ACK):
            raise RemoteProtocolError("SETTINGS must come first")
        if self._fragment is not None and (kind != frames.CONTINUATION or self._fragment.stream_id != stream_id):
            raise RemoteProtocolError("a header block was cut by another frame")
        try:
            if kind == frames.DATA:
                self._on_data(flags, stream_id, payload)
            elif kind == frames.HEADERS:
                self._on_headers(flags, stream_id, payload)
            elif kind < len(_HANDLERS):
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

    # DATA, section 6.1

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if self._unread + self._taken + size > self._connection_window:
            raise RemoteProtocolError("more DATA than the connection's window", ErrorCode.FLOW_CONTROL_ERROR)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._taken += size
            self._check_closed(stream_id)
            return
        if flags & PADDED:
            payload = _unpadded(payload)
        ended = flags & END_STREAM
        fault = self._data_fault(stream, size, len(payload), bool(ended))
        if fault is not None:
            self._taken += size
            raise fault
        padding = size - len(payload)
        if padding:
            self._taken += padding
            stream.taken += padding
        stream.unread += len(payload)
        self._unread += len(payload)
        if ended:
            self._peer_ended(stream)
        elif not payload:
            self._flood("empty")
            return
        self._events.append(DataReceived(stream, payload, bool(ended)))

    def _data_fault(self, stream: Stream, size: int, content: int, ended: bool) -> StreamError | None:
        """What is wrong with DATA of `size` octets, `content` without padding."""
        if stream.state & State.HALF_CLOSED_REMOTE:
            return StreamError("DATA behind the end", ErrorCode.STREAM_CLOSED)
        if not stream.heard and self.client:
            return StreamError("DATA before headers")
        if stream.unread + stream.taken + size > self._stream_window:
            return StreamError("more DATA than the stream's window", ErrorCode.FLOW_CONTROL_ERROR)
        if stream.expected >= 0:
            stream.expected -= content
            if stream.expected < 0 or (ended and stream.expected):
                return StreamError("DATA is not what content-length says")
        return None

    def _check_closed(self, stream_id: int) -> None:
        """A frame on a stream that isn't open may come if we reset it; else it is the peer's error (section 5.1)."""
        if self._is_idle(stream_id):
            raise RemoteProtocolError(f"a frame on idle stream {stream_id}")
        if stream_id not in self._resets and stream_id <= self._ceiling:
            raise RemoteProtocolError(f"a frame on closed stream {stream_id}", ErrorCode.STREAM_CLOSED)

    def _peer_ended(self, stream: Stream) -> None:
        state = TRANSITIONS[stream.state, Act.RECEIVE_END]
        if state is CLOSED:
            self._finish(stream)
        else:
            stream.state = State(state)

    # HEADERS and CONTINUATION, sections 6.2 and 6.10

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (PADDED | PRIORITISED):
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & PRIORITISED:
                check_dependency(stream_id, payload)
                payload = payload[5:]
        if not stream_id or (stream_id % 2 == 0):
            raise RemoteProtocolError(f"HEADERS on stream {stream_id}")
        if flags & END_HEADERS:
            self._on_block(stream_id, payload, bool(flags & END_STREAM))
        else:
            self._fragment = Fragment(stream_id, bool(flags & END_STREAM), payload)

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
            self._on_block(stream_id, bytes(fragment.block), fragment.ended)

    def _on_block(self, stream_id: int, encoded: bytes, ended: bool) -> None:
        """A whole header block. It is decoded whatever becomes of it, since it may change the table."""
        block = self._decoder.known.get(encoded)
        if block is None:
            if len(encoded) > self.limits.header_block:
                raise RemoteProtocolError("header block too large", ErrorCode.ENHANCE_YOUR_CALM)
            block = self._decoder.decode(encoded)
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.client or stream_id <= self._last_in:
                self._check_closed(stream_id)
                return
            if stream_id > self._ceiling:
                # Our GOAWAY said that nobody would look at it.
                return
            self._on_request(stream_id, block, ended)
            return
        if stream.state & State.HALF_CLOSED_REMOTE:
            raise StreamError("HEADERS behind the end", ErrorCode.STREAM_CLOSED)
        if block.size > self.limits.header_list or len(block.fields) > self.limits.header_fields:
            raise StreamError("header list too large", ErrorCode.ENHANCE_YOUR_CALM)
        if stream.heard or not self.client:
            self._on_trailers(stream, block, ended)
        else:
            self._on_response(stream, block, ended)

    def _on_request(self, stream_id: int, block: HeaderBlock, ended: bool) -> None:
        self._last_in = stream_id
        if len(self.streams) >= self.limits.concurrent_streams:
            raise StreamError("too many streams", ErrorCode.REFUSED_STREAM)
        if block.size > self.limits.header_list or len(block.fields) > self.limits.header_fields:
            raise StreamError("header list too large", ErrorCode.ENHANCE_YOUR_CALM)
        if block.kind is not Kind.REQUEST:
            raise StreamError(block.fault or "not a request")
        if ended and block.length > 0:
            raise StreamError("no DATA where content-length promises it")
        stream = Stream(stream_id, HALF_CLOSED_REMOTE if ended else OPEN)
        stream.expected = block.length
        stream.heard = True
        self.streams[stream_id] = stream
        self._events.append(HeadersReceived(stream, block, None, ended))

    def _on_response(self, stream: Stream, block: HeaderBlock, ended: bool) -> None:
        if block.kind is Kind.INFORMATIONAL and not ended:
            self._flood("ignored")
            return
        if block.kind is not Kind.RESPONSE:
            raise StreamError(block.fault or "not a response")
        if ended and block.length > 0:
            raise StreamError("no DATA where content-length promises it")
        stream.expected = block.length
        stream.heard = True
        if ended:
            self._peer_ended(stream)
        self._events.append(HeadersReceived(stream, block, None, ended))

    def _on_trailers(self, stream: Stream, block: HeaderBlock, ended: bool) -> None:
        if not ended or block.kind is not Kind.TRAILERS:
            raise StreamError(block.fault or "second headers that are no trailers")
        if stream.expected > 0:
            raise StreamError("less DATA than content-length says")
        self._peer_ended(stream)
        self._events.append(HeadersReceived(stream, block, None, ended))


class Fragment:
    """A header block whose end has not come."""

    __slots__ = ("block", "count", "ended", "stream_id")

    def __init__(self, stream_id: int, ended: bool, block: bytes) -> None:
        self.stream_id = stream_id
        self.ended = ended
        self.block = bytearray(block)
        self.count = 0


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

"""From octets to frames, and the two shapes of a unary call read in one look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nebuladb.rpc.http2 import frames
from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError, StreamError
from nebuladb.rpc.http2.events import Event, HeadersReceived, ResponseReceived
from nebuladb.rpc.http2.frames import END_HEADERS, END_STREAM, HEAD, HEAD_SIZE, MAX_STREAM_ID, PREFACE
from nebuladb.rpc.http2.headers import HeaderBlock, Kind
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.receiving import Receiving
from nebuladb.rpc.http2.stream import CLOSED, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE, OPEN, Stream

_unpack: Final = HEAD.unpack_from
_HEADERS: Final = frames.HEADERS
_LAST_HEADERS: Final = END_HEADERS | END_STREAM
_REQUEST: Final = Kind.REQUEST
_RESPONSE: Final = Kind.RESPONSE
_TRAILERS: Final = Kind.TRAILERS


class Reading(Receiving):
    """Adds `receive`.

    A unary call is a HEADERS and a DATA that ends the stream; its answer HEADERS, DATA, HEADERS. They mostly come
    whole in one read, with header blocks that were seen before. `_requests` and `_responses` recognise these shapes
    by comparisons alone, in the loop and on local variables: at one to two microseconds a call, each method called
    for a frame would add a tenth. What a stream mostly brings, DATA from the middle of a body, has a way of its own,
    `_part`. Whatever differs in anything takes the long way, `_frame`, which knows all the rules; all ways must tell
    the owner the same, which the tests hold by cutting the octets anywhere.

    One stream may go `straight`: of a link between nodes each message is mostly one DATA and all of a read. `part` is
    the way of such a read. It makes no event, and no output: what would owe the peer anything goes the ways above.
    """

    __slots__ = ("_offer", "_preface", "_rest", "straight")

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self._rest = b""
        """A frame that has not come whole."""
        self._preface = b"" if client else PREFACE
        """What is still missing of the client's."""
        self.straight: Stream | None = None
        """The stream whose parts `part` is to take."""
        self._offer: Callable[[bytes], bool] = bool

    def go_straight(self, stream: Stream, offer: Callable[[bytes], bool]) -> None:
        """Let `part` take reads of this stream. `offer` is given the octets of each, and says whether they were of use
        to it, so that they count as consumed; if not, it must have done nothing."""
        self.straight, self._offer = stream, offer

    def part(self, data: bytes) -> bool:
        """Whether `data` was one DATA from the midst of the body that goes `straight`, and was of use. If not, nothing
        has happened, and `receive` takes it."""
        stream = self.straight
        size = len(data) - HEAD_SIZE
        if stream is None or size <= 0 or self._rest or self._fragment is not None or self.closed:
            return False
        taken = stream.taken + size
        if (
            _unpack(data) != (size << 8, 0, stream.id)
            or size > self.limits.frame_size
            or not (stream.state is OPEN or stream.state is HALF_CLOSED_LOCAL)
            or not stream.heard
            or stream.expected >= 0
            or stream.unread
            # Less than half of either window is used up, so there is room, and nothing to say of it yet.
            or taken >= self._stream_window_low
            or self._taken + size >= (self._connection_window - self._unread) // 2
            or not self._offer(data[HEAD_SIZE:])
        ):
            return False
        stream.taken = taken
        self._taken += size
        return True

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What `data` brings, in order. `now`: seconds, monotonic. Never raises for what the peer did."""
        if self.closed:
            return []
        self._now = now
        try:
            if self._preface:
                data = self._strip_preface(data)
            if self._rest:
                data = self._rest + data
            at = self._responses(data) if self.client else self._requests(data)
            self._rest = data[at:]
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

    def _requests(self, data: bytes) -> int:
        """A server's: handle all whole frames, and return where the rest begins."""
        unpack = _unpack
        streams = self.streams
        events = self._events
        decoder = self._decoder
        most_streams = self.limits.concurrent_streams
        ceiling = self._ceiling
        too_large = (self.limits.frame_size + 1) << 8
        short = self.ready and self._fragment is None
        known = decoder.known
        most_data = min(self.limits.frame_size, self._stream_window)
        window = self._connection_window - self._unread
        at, end = 0, len(data)
        while end - at >= HEAD_SIZE:
            head, flags, stream_id = unpack(data, at)
            if head >= too_large:
                raise RemoteProtocolError(f"a frame of {head >> 8} octets", ErrorCode.FRAME_SIZE_ERROR)
            start = at + HEAD_SIZE
            after = start + (head >> 8)
            body = after + HEAD_SIZE
            if flags == END_HEADERS and body <= end and head & 0xFF == _HEADERS and short:
                head2, flags2, stream_id2 = unpack(data, after)
                size = head2 >> 8
                last = body + size
                if (
                    flags2 == END_STREAM
                    and stream_id2 == stream_id
                    and not head2 & 0xFF
                    and last <= end
                    and size <= most_data
                    and self._last_in < stream_id <= ceiling
                    and stream_id & 1
                    and len(streams) < most_streams
                    and self._taken + size <= window
                ):
                    encoded = data[start:after]
                    block = known.get(encoded)
                    if block is None:
                        block = decoder.decode(encoded)
                        known = decoder.known
                    if block.plain is _REQUEST:
                        self._last_in = stream_id
                        self._taken += size
                        stream = streams[stream_id] = Stream(stream_id, HALF_CLOSED_REMOTE)
                        events.append(HeadersReceived(stream, block, data[body:last], True))  # noqa: FBT003 - 60 ns
                        at = last
                        continue
                    self._decoded(stream_id, block)
                    at = after
                    continue
            if after > end:
                break
            payload = data[start:after]
            at = after
            if not (head & 0xFF or flags) and self._part(stream_id, payload):
                window -= len(payload)
                continue
            self._frame(head & 0xFF, flags, stream_id & MAX_STREAM_ID, payload)
            # Whatever it was may have changed any of these.
            short = self.ready and self._fragment is None
            known = decoder.known
            most_data = min(self.limits.frame_size, self._stream_window)
            window = self._connection_window - self._unread
        return at

    def _decoded(self, stream_id: int, block: HeaderBlock) -> None:
        """The long way for a request's HEADERS from where its block is decoded, which must not happen twice."""
        try:
            self._on_list(stream_id, block, ended=False)
        except StreamError as error:
            self._stream_fault(stream_id, error)

    def _responses(self, data: bytes) -> int:
        """A client's: handle all whole frames, and return where the rest begins."""
        unpack = _unpack
        streams = self.streams
        too_large = (self.limits.frame_size + 1) << 8
        whole = self.whole_responses
        at, end = 0, len(data)
        while end - at >= HEAD_SIZE:
            head, flags, stream_id = unpack(data, at)
            if head >= too_large:
                raise RemoteProtocolError(f"a frame of {head >> 8} octets", ErrorCode.FRAME_SIZE_ERROR)
            start = at + HEAD_SIZE
            after = start + (head >> 8)
            if flags == END_HEADERS and after + HEAD_SIZE <= end and head & 0xFF == _HEADERS and whole:
                stream = streams.get(stream_id)
                if stream is not None and stream.state is HALF_CLOSED_LOCAL and not stream.heard:
                    done = self._response(stream, data, start, after, end)
                    if done:
                        at = done
                        continue
            if after > end:
                break
            payload = data[start:after]
            if head & 0xFF or flags or not self._part(stream_id, payload):
                self._frame(head & 0xFF, flags, stream_id & MAX_STREAM_ID, payload)
            at = after
        return at

    def _response(self, stream: Stream, data: bytes, start: int, after: int, end: int) -> int:
        """A whole answer whose HEADERS' block is `data[start:after]`: where it ends, 0 if it isn't one."""
        unpack = _unpack
        stream_id = stream.id
        head, flags, second_id = unpack(data, after)
        size: int = head >> 8
        body = after + HEAD_SIZE
        last = body + size
        if flags or second_id != stream_id or head & 0xFF or last + HEAD_SIZE > end:
            return 0
        head, flags, third_id = unpack(data, last)
        tail = last + HEAD_SIZE
        done: int = tail + (head >> 8)
        if flags != _LAST_HEADERS or third_id != stream_id or head & 0xFF != _HEADERS or done > end:
            return 0
        known = self._decoder.known
        headers = known.get(data[start:after])
        trailers = known.get(data[tail:done])
        taken = self._taken + size
        if (
            headers is None
            or trailers is None
            or headers.plain is not _RESPONSE
            or trailers.plain is not _TRAILERS
            or not size
            or size > min(self.limits.frame_size, self._stream_window)
            or self._unread + taken > self._connection_window
            or self._fragment is not None
            or not self.ready
        ):
            return 0
        self._taken = taken
        stream.state = CLOSED
        del self.streams[stream_id]
        self._events.append(ResponseReceived(stream, headers, data[body:last], trailers))
        if self._refused:
            self._allow_again()
        return done

"""The way out: headers, data under the peer's flow control, and the one-piece answer of a unary call."""

from __future__ import annotations

from collections import deque
from typing import Final

from nebuladb.errors import invariant
from nebuladb.rpc.http2.core import Core
from nebuladb.rpc.http2.errors import ErrorCode, LocalProtocolError, StreamLimit
from nebuladb.rpc.http2.events import Event, Writable
from nebuladb.rpc.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    MAX_STREAM_ID,
    MIN_FRAME_SIZE,
    header_frames,
)
from nebuladb.rpc.http2.headers import Fields
from nebuladb.rpc.http2.limits import Limits
from nebuladb.rpc.http2.stream import (
    CLOSED,
    HALF_CLOSED_LOCAL,
    HALF_CLOSED_REMOTE,
    OPEN,
    SEND,
    SEND_END,
    TRANSITIONS,
    Stream,
)

UPDATES_A_FRAME: Final = 2
"""WINDOW_UPDATEs that a frame of DATA may be answered by: the stream's and the connection's."""
_head: Final = HEAD.pack
PIECE: Final = MIN_FRAME_SIZE
"""Octets of a piece of waiting data. Pieces are copies: a view would keep a whole response in memory for its last
octet, and a peer that takes all but one of each would make us keep a thousand that `waiting` doesn't count."""


class Sending(Core):
    """Adds what the owner sends.

    Sending on a stream that was reset, or on a closed connection, does nothing: the owner will meet the event.
    Sending on one that we ended is its mistake, and raises.
    """

    __slots__ = ("_reply", "_reply_headers", "_reply_trailers", "_reply_version")

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self._reply: tuple[bytes, bytes, bytes, bytes] = (b"", b"", b"", b"")
        self._reply_headers: Fields | None = None
        self._reply_trailers: Fields | None = None
        self._reply_version = -1

    def has_room(self) -> bool:
        """Whether the peer allows one more stream; if not, `StreamsAllowed` follows."""
        room = len(self.streams) < self.peer.concurrent_streams
        self._refused = self._refused or not room
        return room

    def open(self, headers: Fields, *, end: bool = False) -> Stream:
        """A client's new stream.

        Raises:
            StreamLimit: the peer's MAX_CONCURRENT_STREAMS are open; `StreamsAllowed` follows.
            LocalProtocolError: the connection is closed or going away, out of ids, or a server's; headers that can't
                be sent.
        """
        if self.going_away or not self.client:
            raise LocalProtocolError("no streams are opened here, or no more", ErrorCode.REFUSED_STREAM)
        if not self.has_room():
            raise StreamLimit(f"{self.peer.concurrent_streams} streams are open", ErrorCode.REFUSED_STREAM)
        stream_id = self._next_id
        if stream_id > MAX_STREAM_ID:
            raise LocalProtocolError("no stream ids are left", ErrorCode.REFUSED_STREAM)
        block = self._encoder.encode(headers)
        self._next_id = stream_id + 2
        stream = Stream(stream_id, HALF_CLOSED_LOCAL if end else OPEN)
        stream.answered = True
        self.streams[stream_id] = stream
        self._out.append(header_frames(stream_id, block, self.peer.frame_size, end=end))
        return stream

    def call(self, headers: Fields, data: bytes) -> Stream:
        """A client's unary request: headers, and all of its body.

        Raises: as `open`.
        """
        size = len(data)
        window = self._window - size
        peer = self.peer
        # As in `respond`: comparisons first, and pieces into the output as they are.
        if (
            self.going_away
            or not self.client
            or window < 0
            or not 0 < size <= self._frame_out
            or size > peer.stream_window
            or len(self.streams) >= peer.concurrent_streams
            or self._next_id > MAX_STREAM_ID
        ):
            stream = self.open(headers)
            self.send_data(stream, data, end=True)
            return stream
        block = self._encoder.encode(headers)
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self._window = window
        self._updates_earned += UPDATES_A_FRAME
        if len(block) <= MIN_FRAME_SIZE:
            head = _head(len(block) << 8 | HEADERS, END_HEADERS, stream_id)
            self._out += (head, block, _head(size << 8 | DATA, END_STREAM, stream_id), data)
        else:
            self._out.append(header_frames(stream_id, block, peer.frame_size, end=False))
            self._out += (_head(size << 8 | DATA, END_STREAM, stream_id), data)
        stream = self.streams[stream_id] = Stream(stream_id, HALF_CLOSED_LOCAL)
        stream.answered = True
        return stream

    def send_headers(self, stream: Stream, headers: Fields, *, end: bool = False) -> None:
        """Response headers, or trailers (`end`), which wait behind the stream's waiting data.

        Raises:
            LocalProtocolError: we ended the stream, or these are second headers that don't end it.
        """
        if stream.reset or self.closed:
            return
        self._check_sendable(stream)
        if stream.answered and not end:
            raise LocalProtocolError(f"second headers on stream {stream.id}")
        if stream.waiting:
            # It is encoded when it leaves: the peer's table follows the order of the blocks.
            self._encoder.check(headers)
            stream.tail = headers
            return
        block = self._encoder.encode(headers)
        stream.answered = True
        self._out.append(header_frames(stream.id, block, self.peer.frame_size, end=end))
        if end:
            self._ended(stream)

    def send_data(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """A part of the body, as much as the windows allow; the rest waits (`stream.waiting`, then `Writable`).

        If `Limits.waiting_bytes` would be exceeded the stream is reset (INTERNAL_ERROR, and a `StreamReset` comes).

        Raises:
            LocalProtocolError: we ended the stream, or its headers were not sent.
        """
        if stream.reset or self.closed:
            return
        size = len(data)
        window = self._window - size
        if (
            (stream.state is OPEN or stream.state is HALF_CLOSED_REMOTE)
            and stream.answered
            and not (stream.waiting or end)
            and window >= 0
            and 0 < size <= self._frame_out
            and size <= self.peer.stream_window + stream.credit
        ):
            # A frame that the windows have room for, with more to follow: a message of a stream.
            self._window = window
            stream.credit -= size
            self._updates_earned += UPDATES_A_FRAME
            self._out += (_head(size << 8 | DATA, 0, stream.id), data)
            return
        self._check_sendable(stream)
        if not stream.answered:
            raise LocalProtocolError(f"data before headers on stream {stream.id}")
        if stream.waiting:
            if size:
                self._wait(stream, data)
            if end:
                stream.tail = True
            return
        room = min(self._window, self.peer.stream_window + stream.credit)
        if size <= max(room, 0):
            if size or end:
                self._write(stream, data, end=end)
            if end:
                self._ended(stream)
            return
        if room > 0:
            self._write(stream, data[:room], end=False)
            data = data[room:]
        self._wait(stream, data)
        if end and not stream.reset:
            stream.tail = True

    def respond(self, stream: Stream, headers: Fields, data: bytes, trailers: Fields) -> None:
        """The whole answer of a unary call.

        Raises: as `send_headers`.
        """
        size = len(data)
        window = self._window - size
        # The hot path. Nothing is looked up that a comparison of identities or numbers can answer, and the pieces go
        # into the output as they are: `take` joins all of a turn's once.
        if (
            headers is self._reply_headers
            and trailers is self._reply_trailers
            and self._reply_version == self._encoder.version
            and stream.state is HALF_CLOSED_REMOTE
            and not stream.answered
            and window >= 0
            and 0 < size <= self._frame_out
            and size <= self.peer.stream_window + stream.credit
            and not self.closed
        ):
            stream_id = stream.id
            name = stream_id.to_bytes(4, "big")
            head, after_head, tail, after_tail = self._reply
            self._window = window
            self._updates_earned += UPDATES_A_FRAME
            # A DATA head's first five octets: length, type 0, flags 0.
            self._out += (head, name, after_head, (size << 16).to_bytes(5, "big"), name, data, tail, name, after_tail)
            stream.answered = True
            stream.state = CLOSED
            del self.streams[stream_id]
            return
        self._encoder.check(trailers)
        self.send_headers(stream, headers)
        self.send_data(stream, data)
        self.send_headers(stream, trailers, end=True)
        self._remember_reply(headers, trailers)

    def _remember_reply(self, headers: Fields, trailers: Fields) -> None:
        """Keep the frames of a pair of header lists if they are indexes by now."""
        encoder = self._encoder
        version = encoder.version
        first, last = encoder.known(headers), encoder.known(trailers)
        if first is None or last is None or max(len(first), len(last)) > self.peer.frame_size:
            return
        self._reply_headers, self._reply_trailers, self._reply_version = headers, trailers, version
        self._reply = (
            header_frames(0, first, len(first), end=False)[:5],
            first,
            header_frames(0, last, len(last), end=True)[:5],
            last,
        )

    def _check_sendable(self, stream: Stream) -> None:
        if stream.tail is not None or isinstance(TRANSITIONS[stream.state][SEND], ErrorCode):
            raise LocalProtocolError(f"stream {stream.id} was ended", ErrorCode.STREAM_CLOSED)

    def _ended(self, stream: Stream) -> None:
        """END_STREAM is in the output."""
        state = TRANSITIONS[stream.state][SEND_END]
        if state is CLOSED:
            self._finish(stream)
        else:
            stream.state = HALF_CLOSED_LOCAL

    def _write(self, stream: Stream, data: bytes | memoryview, *, end: bool) -> None:
        """DATA for which the windows have room; at least one frame."""
        size = len(data)
        self._window -= size
        stream.credit -= size
        self._updates_earned += UPDATES_A_FRAME
        out = self._out
        largest = self._frame_out
        flags = END_STREAM if end else 0
        if size <= largest:
            out.append(_head(size << 8 | DATA, flags, stream.id))
            out.append(data)
            return
        view = memoryview(data)
        for at in range(0, size, largest):
            piece = view[at : at + largest]
            out.append(_head(len(piece) << 8 | DATA, flags if at + largest >= size else 0, stream.id))
            out.append(piece)

    def _wait(self, stream: Stream, data: bytes) -> None:
        size = len(data)
        if self.waiting + size > self.limits.waiting_bytes:
            self.reset(stream, ErrorCode.INTERNAL_ERROR)
            self._lose(stream, ErrorCode.INTERNAL_ERROR)
            self.news = True
            return
        if stream.queue is None:
            stream.queue = deque()
        for at in range(0, size, PIECE):
            stream.queue.append(memoryview(data[at : at + PIECE]))
        stream.waiting += size
        self.waiting += size
        if self.peer.stream_window + stream.credit > 0:
            self._sendable[stream.id] = stream

    def _window_moved(self, stream: Stream) -> None:
        """The stream's own window has grown, or a setting has moved it."""
        if not stream.waiting:
            return
        if self.peer.stream_window + stream.credit > 0:
            self._sendable.setdefault(stream.id, stream)
            self._pump()
        else:
            self._sendable.pop(stream.id, None)

    def sendable(self, stream: Stream) -> bool:
        """Whether octets of it wait, and its own window is open."""
        return stream.id in self._sendable

    def pump(self) -> list[Event]:
        """Let go more of what is `held_back`, as much as `at_once`; what that brings. The output has been taken."""
        self._pumped = 0
        self._pump()
        return self.told()

    def _pump(self) -> None:
        """Let go what waits, a frame a stream in turn, until the connection's window or every stream's is used up, or
        the owner must take the output first. Else hundreds of MiB that wait would be copied whole into the output, and
        once more by `take`."""
        sendable = self._sendable
        self.held_back = False
        while sendable and self._window > 0:
            if self._pumped >= self.at_once:
                self.held_back = True
                return
            stream_id = next(iter(sendable))
            stream = sendable.pop(stream_id)
            queue = stream.queue
            room = self.peer.stream_window + stream.credit
            invariant(bool(queue) and room > 0, "a stream is held as sendable that isn't")
            assert queue is not None
            piece = queue[0]
            size = min(len(piece), self._window, room, self._frame_out)
            if size == len(piece):
                queue.popleft()
            else:
                queue[0] = piece[size:]
            stream.waiting -= size
            self.waiting -= size
            self._pumped += size
            tail = stream.tail
            self._write(stream, piece[:size], end=tail is True and not queue)
            if not queue:
                self._drained(stream, tail)
            elif room > size:
                # At the end of the line: everybody else has a frame first.
                sendable[stream_id] = stream

    def _drained(self, stream: Stream, tail: Fields | bool | None) -> None:
        """All that waited has left."""
        stream.queue = None
        stream.tail = None
        if isinstance(tail, tuple):
            block = self._encoder.encode(tail)
            self._out.append(header_frames(stream.id, block, self.peer.frame_size, end=True))
        if tail is not None:
            self._ended(stream)
        self._events.append(Writable(stream))

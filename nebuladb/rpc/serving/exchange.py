"""A call in progress: its messages and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from nebuladb.rpc import framing, status
from nebuladb.rpc.compression import Codec
from nebuladb.rpc.framing import CutError, MessageReader, Packed
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.stream import State, Stream
from nebuladb.rpc.metadata import Fields, Value, encode_metadata
from nebuladb.rpc.serving.request import OK, Request
from nebuladb.rpc.serving.routes import Route
from nebuladb.rpc.status import StatusError

if TYPE_CHECKING:
    from nebuladb.rpc.serving.connection import ServerConnection

LARGE: Final = 4096
"""Bytes of an answer that is worth counting: a thousand smaller ones in one turn are no more than a few MiB."""
LOG: Final = logging.getLogger("nebuladb.rpc")
_NO_ROOM: Final = "done, but the answer has no room: clients of this node leave too many unread; ask for less at once"
MetadataLike = Sequence[tuple[str, Value]] | grpc.aio.Metadata


class Exchange:
    """A call's messages and its end, and `Work` of the carrier that runs its handler.

    It is *over* when its status is on the way, or its client is gone; what the handler does then goes nowhere. It is
    released, and counts no more, when the handler has returned.

    Most attributes are the class's until they differ: a call that is answered at once sets five.
    """

    task: asyncio.Task[None] | None = None
    over: bool = False
    counted: bool = False
    """It is in progress: its handler was started, and has not returned."""
    gathered: int = 0
    """Bytes of a unary request, or a stream's message, that has not come whole, which its connection counts."""
    plain: bool = True
    """The handler has said nothing of status, metadata or compression, and sent nothing."""
    _cancelled: bool = False
    _released: bool = False
    _answered: bool = False
    _code: grpc.StatusCode = grpc.StatusCode.OK
    _details: str = ""
    _trailing: MetadataLike = ()
    _trailing_fields: Fields = ()
    _encoding: str | None = None
    _codec: Codec | None = None
    _plain_next: bool = False
    _callbacks: list[Callable[[Any], Any]] | None = None
    _timer: asyncio.TimerHandle | None = None
    # Of streams:
    _reader: MessageReader | None = None
    _inbox: deque[bytes | int]
    _arrival: asyncio.Future[None] | None = None
    _peer_ended: bool = True
    _outbox: list[bytes] | None = None
    _written: int = 0
    _room: asyncio.Future[None] | None = None

    def __init__(
        self, connection: ServerConnection, stream: Stream, request: Request, route: Route | None, begun: float
    ) -> None:
        self.connection = connection
        self.stream = stream
        self.request = request
        self.route = route
        self._begun = begun

    def count(self) -> None:
        """It is in progress, until `_release`."""
        connection = self.connection
        self.counted = True
        connection.calls += 1
        connection.server.calls += 1
        connection.server.keep(self.request)

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self, value: Any) -> None:
        """The handler returned: the response of a unary answer, nothing of a streaming one."""
        route = self.route
        if self.over or route is None:
            self._release()
            return
        if route.response_streaming or self._code is not grpc.StatusCode.OK:
            self.end()
        else:
            try:
                data = self._framed(value, route.serialize)
                if self.connection.overfull(len(data)):
                    raise StatusError(grpc.StatusCode.UNAVAILABLE, _NO_ROOM)
            except StatusError as error:
                self.refuse(error)
            else:
                connection, stream, plain = self.connection, self.stream, self.plain
                self._over()
                if plain:
                    connection.http2.respond(stream, OK, data, status.OK_TRAILERS)
                else:
                    self._head()
                    connection.http2.send_data(stream, data)
                    connection.http2.send_headers(stream, self._trailers(), end=True)
                if len(data) > LARGE:
                    connection.answered(len(data))
                connection.sent(stream)
        self._release()

    def fail(self, error: BaseException) -> None:
        """The handler raised. Its text is not the client's business."""
        if not self.over:
            if isinstance(error, grpc.aio.AbortError):
                self.end()
            elif isinstance(error, StatusError):
                self.refuse(error)
            elif self._code is not grpc.StatusCode.OK:
                self.end()  # it had said how it fails, as generated code does of methods that nobody wrote
            elif isinstance(error, asyncio.CancelledError):
                self.end(grpc.StatusCode.CANCELLED, "the handler was cancelled")
            else:
                LOG.error("handler of %s failed", self.request.path, exc_info=error)
                self.end(grpc.StatusCode.UNKNOWN, "the handler failed; the server's log says how")
        elif not isinstance(error, asyncio.CancelledError | grpc.aio.BaseError | grpc.aio.AbortError):
            LOG.error("handler of %s failed after the call was over", self.request.path, exc_info=error)
        self._release()

    def refuse(self, error: StatusError) -> None:
        """End with the status of `error`."""
        code, route = error.code, self.route
        if isinstance(error, CutError):
            # As gRPC for Go has it, which etcd's clients know: UNKNOWN, but for what a stream cuts off.
            streaming = route is None or route.request_streaming or route.response_streaming
            code = code if error.begun and streaming else grpc.StatusCode.UNKNOWN
        self._trailing_fields += encode_metadata(error.trailing)
        self.end(code, error.details)

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        """Send the status: this one, or what the handler set."""
        if self.over:
            return
        if code is not None:
            self._code, self._details = code, details
        if self._outbox:
            self.push()
        self._over()
        connection, stream = self.connection, self.stream
        trailers = self._trailers()
        if self._answered or self._code is grpc.StatusCode.OK:
            self._head()
        else:
            trailers = OK + trailers
        connection.http2.send_headers(stream, trailers, end=True)
        connection.sent(stream)

    def _trailers(self) -> Fields:
        fields = status.trailers(self._code, self._details)
        return fields + self._trailing_fields if self._trailing_fields else fields

    def lost(self) -> None:
        """Nobody waits for the answer any more: the stream was reset, or the connection is gone."""
        if not self.over:
            self._cancelled = True
            self._over()
        if self.stream.waiting > self.connection.limits.stream_bytes:
            # The status waits behind it, for a client that doesn't take it; and its handler counts it no more.
            self.connection.http2.reset(self.stream, ErrorCode.CANCEL)
            self.connection.touched()
        if self._room is not None and not self._room.done():
            self._room.cancel()
        if self.task is None:
            self._release()  # its request had not come whole
        else:
            self.task.cancel()

    def expire(self) -> None:
        """The deadline passed."""
        if not self.over:
            self._timer = None
            self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
            self.lost()

    def stop(self, why: str) -> None:
        """The server's time is up."""
        if not self.over:
            self.end(grpc.StatusCode.UNAVAILABLE, why)
        self.lost()

    def _over(self) -> None:
        self.over = True
        if self.gathered:
            self.connection.ungather(self)
            if self._reader is not None:
                self._reader.drop()
        if self._timer is not None:
            self.disarm()
        if self._reader is not None:
            self._reader.listener = None
        if self._arrival is not None and not self._arrival.done():
            self._arrival.cancel()
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                self._call_back(callback)

    def _call_back(self, callback: Callable[[Any], Any]) -> None:
        try:
            callback(self)
        except Exception:
            LOG.exception("a done callback of %s failed", self.request.path)

    def _release(self) -> None:
        """The handler has returned, or won't be started."""
        if not self._released:
            self._released = True
            if not self.over:
                self._over()
            if self.counted:
                connection = self.connection
                server = connection.server
                connection.calls -= 1
                server.calls -= 1
                server.leave(self.request)
                if server.stopping:
                    server.look()
            if self.stream.state is State.CLOSED:
                self.stream.owner = None  # nothing more comes of it; each would keep the other for the collector

    def arm(self) -> None:
        """Mind the deadline from now on; a call that never waits needs no timer."""
        timeout = self.request.timeout
        if timeout is not None and self._timer is None and not self.over:
            loop = self.connection.server.loop
            self._timer = loop.call_later(max(0.0, self._begun + timeout - time.monotonic()), self.expire)

    def disarm(self) -> None:
        """Mind the deadline no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- messages that come in -------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Take messages as they come, from now on."""
        self._reader = MessageReader(self.connection.limits.message_bytes, self.request.inflate, lazy=True)
        self._inbox = deque()
        self._peer_ended = False

    @property
    def listening(self) -> bool:
        """It was told to take messages."""
        return self._reader is not None

    @property
    def complete(self) -> bool:
        """The client has sent all it will."""
        return self._peer_ended

    def feed(self, data: bytes, *, ended: bool, counted: bool = False) -> None:
        """A part of the body. `counted`: the connection has counted it as consumed already."""
        size = 0 if counted else len(data)
        reader = self._reader
        if self.over or reader is None:
            self.connection.http2.consumed(self.stream, size)
            return
        inbox = self._inbox
        try:
            messages = reader.feed(data)
            if ended:
                reader.ended()
        except StatusError as error:
            self.connection.http2.consumed(self.stream, size)
            self.refuse(error)
            self.lost()
            return
        if self.counted:
            if messages and self.gathered:
                self.connection.ungather(self)
            part = len(reader.buffer) if messages else len(data)
            if part and not self.connection.gather(self, part):
                return
        listener = reader.listener
        if listener is not None:
            self.connection.http2.consumed(self.stream, size)
            self._hand_over(reader, messages, listener)
            messages = []
        elif messages:
            # The window opens again when the handler takes them: this is the bound on what waits here.
            inbox += messages
            inbox.append(size)
        elif inbox:
            # The beginning of a message counts with those before it: of 64 messages of 4 MiB each only the last frames
            # would else count, and all of them wait under a window of a MiB.
            waiting = inbox[-1]
            assert isinstance(waiting, int)
            inbox[-1] = waiting + size
        elif size:
            self.connection.http2.consumed(self.stream, size)
        self._peer_ended = ended
        if (messages or ended) and self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _hand_over(self, reader: MessageReader, messages: list[bytes], listener: Callable[[bytes], None]) -> None:
        try:
            for message in messages:
                if self.over:
                    return  # whoever listens ended it
                listener(reader.unpack(message) if isinstance(message, Packed) else message)
        except StatusError as error:
            self.refuse(error)
            self.lost()

    def take(self) -> bytes | None:
        """The next message that is here. Raises `StatusError` for one that doesn't inflate."""
        inbox = self._inbox
        if not inbox:
            return None
        message = inbox.popleft()
        assert isinstance(message, bytes)
        if inbox and isinstance(inbox[0], int):
            size = inbox.popleft()
            assert isinstance(size, int)
            self.connection.http2.consumed(self.stream, min(size, self.stream.unread))
            self.connection.touched()
        if isinstance(message, Packed) and self._reader is not None:
            return self._reader.unpack(message)
        return message

    def whole(self) -> bytes:
        """The one message of a unary request that has come to its end. Raises `StatusError`."""
        message = self.take()
        if message is None:
            raise CutError(begun=False)
        if self._inbox:
            raise StatusError(grpc.StatusCode.INTERNAL, "a request holds more than the one message it must")
        return message

    def decode(self, message: bytes) -> Any:
        """The request object. Raises `StatusError`."""
        assert self.route is not None
        deserialize = self.route.deserialize
        if deserialize is None:
            return message
        try:
            return deserialize(message)
        except Exception as error:
            LOG.info("a request of %s does not parse: %r", self.request.path, error)
            raise StatusError(grpc.StatusCode.INTERNAL, "the request does not parse") from None

    async def one(self) -> bytes:
        """Wait for all of a unary request. Raises `StatusError`."""
        while not (self._peer_ended or self.over):
            await self._news()
        return self.whole()

    async def _news(self) -> None:
        """Wait until a message comes, or the end of them."""
        if self._arrival is not None and not self._arrival.done():
            raise grpc.aio.UsageError("one read at a time")
        self._arrival = self.connection.server.loop.create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    # --- messages that go out --------------------------------------------------------------------------------------

    def _framed(self, response: Any, serialize: Callable[[Any], bytes] | None) -> bytes:
        """Bytes of a response, behind their prefix; without `serialize` it is bytes. Raises `StatusError`."""
        if serialize is not None:
            try:
                response = serialize(response)
            except Exception as error:
                LOG.error("a response of %s does not serialize", self.request.path, exc_info=error)
                raise StatusError(grpc.StatusCode.INTERNAL, "the response does not serialize") from None
        if not isinstance(response, bytes):
            LOG.error("a response of %s is %s, not bytes", self.request.path, type(response).__name__)
            raise StatusError(grpc.StatusCode.INTERNAL, "the response does not serialize")
        if len(response) > self.connection.limits.response_bytes:
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the response has {len(response)} bytes")
        codec = self._codec
        if codec is None:
            return b"\0" + len(response).to_bytes(4, "big") + response
        if self._plain_next:
            self._plain_next = False
            return framing.frame(response)
        return framing.frame_compressed(response, codec)

    def _head(self, initial: Fields = ()) -> None:
        """Send the headers, once."""
        if not self._answered:
            self._answered = True
            self.plain = False
            fields = OK
            if self._codec is not None and self._encoding is not None:
                fields += ((b"grpc-encoding", self._encoding.encode()),)
            self.connection.http2.send_headers(self.stream, fields + initial if initial else fields)

    def _too_late(self) -> BaseException:
        """What it means to write when the call is over."""
        return asyncio.CancelledError() if self._cancelled else grpc.aio.UsageError("the call is over")

    def put(self, response: Any) -> bool:
        """Send a message with this turn's write. True: `room` must be awaited before the next one.

        Raises `StatusError` for one that doesn't serialize or is too large.
        """
        if self.over:
            raise self._too_late()
        assert self.route is not None
        data = self._framed(response, self.route.serialize)
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = []
        if not outbox:
            self.connection.writes(self)
        outbox.append(data)
        self._written += len(data)
        return self._written >= self.connection.limits.turn_bytes or self.connection.paused

    def put_bytes(self, message: bytes) -> bool:
        """Put a message of a stream that is serialized, once a first one was written; the connection's `flush` writes
        it. True: `room` must be awaited before the next one. Raises as `put`."""
        if self.over:
            raise self._too_late()
        size = len(message)
        if self._codec is None and size <= self.connection.limits.response_bytes:
            data = b"\0" + size.to_bytes(4, "big") + message
        else:
            data = self._framed(message, None)
        if self._outbox:
            self.push()
        connection, stream = self.connection, self.stream
        connection.http2.send_data(stream, data)
        if stream.waiting:
            connection.hold(stream)
        return connection.paused or stream.waiting > connection.limits.stream_bytes

    def push(self) -> None:
        """Hand what was put to the connection: small messages leave as one DATA."""
        outbox = self._outbox
        if outbox:
            if not self.over:
                self._head()
                self.connection.http2.send_data(self.stream, outbox[0] if len(outbox) == 1 else b"".join(outbox))
            outbox.clear()

    async def room(self) -> None:
        """Wait until a stream may go on writing: others had a turn, and the peer takes what we send."""
        connection = self.connection
        if self._written >= connection.limits.turn_bytes:
            self._written = 0
            connection.flush()
            await asyncio.sleep(0)
        while not self.over and (connection.paused or self.stream.waiting > connection.limits.stream_bytes):
            self._room = connection.server.loop.create_future()
            connection.waits(self)
            try:
                await self._room
            finally:
                self._room = None

    def writable(self) -> None:
        """The peer took something."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

"""The protocol's side of calls whose answer, request or both are streams of messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import grpc

from nebuladb.rpc.channel.rpc import OK, Rpc, UnaryResponse
from nebuladb.rpc.compression import ZSTD, compressor
from nebuladb.rpc.framing import MessageReader, Packed, frame, frame_compressed
from nebuladb.rpc.status import Status, StatusError

FINISHED: Final = "RPC already finished."
HALF_CLOSED: Final = 'RPC is half closed after calling "done_writing".'


class StreamResponse(Rpc):
    """A call whose answer is a stream.

    A window's worth of messages is held for the reader, as they came, and the server gets room for more as they are
    read. Trailers wait behind the messages, as in gRPC: the status is known when the last one was taken.
    """

    _reader: MessageReader | None = None
    _pending: Status | None = None
    """How the call ended, while there are messages left to read."""
    _wakes: asyncio.Future[None] | None = None

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.messages: deque[bytes] = deque()
        self._parts: deque[list[int]] = deque()
        """For each DATA that completed messages: how many of them are unread, and the bytes to give back after them."""

    def data(self, data: bytes, ended: bool) -> None:
        """A part of the body came."""
        connection, stream, reader = self.connection, self.stream, self._reader
        if reader is None:
            inflate = self.head.inflate if self.head is not None else None
            reader = self._reader = MessageReader(self.core.settings.max_receive_message, inflate, lazy=True)
        try:
            messages = reader.feed(data)
        except StatusError as error:
            self._broken(error)
            return
        listener = self.listener
        if listener is not None:
            if connection is not None and stream is not None:
                connection.http2.consumed(stream, len(data))  # this is `data_received`, at whose end all leaves
            for message in messages:
                if self.over:
                    return  # whoever listens ended it
                if isinstance(message, Packed):
                    try:
                        message = reader.unpack(message)
                    except StatusError as error:
                        self._broken(error)
                        return
                listener(message)
        elif messages:
            self.messages.extend(messages)
            self._parts.append([len(messages), len(data)])
            self._wake()
        elif self._parts:
            self._parts[-1][1] += len(data)
        elif connection is not None and stream is not None:
            connection.consumed(stream, len(data))
        if ended:
            self.fail(grpc.StatusCode.INTERNAL, "the server ended the call without a status")

    def deliver_to(self, listener: Callable[[bytes], None]) -> None:
        """Give it each message from now on, as it is on the wire, when it comes, and those that are here at once;
        nobody may `take` any. The listener writes nothing: the connection's `flush` does, or a task."""
        while (message := self.take()) is not None:
            listener(message)
        self.listener = listener
        connection, stream, reader = self.connection, self.stream, self._reader
        if connection is not None and stream is not None and reader is not None:
            reader.listener = listener
            connection.http2.go_straight(stream, reader.offer)

    def _whole(self, successful: bool) -> bool:
        if successful and self._reader is not None:
            try:
                self._reader.ended()
            except StatusError as error:
                self._broken(error)
                return False
        return True

    def take(self) -> bytes | None:
        """The next message, if one is here. Raises the call's error if it can't be inflated."""
        if not self.messages:
            return None
        message = self.messages.popleft()
        part = self._parts[0]
        part[0] -= 1
        if not part[0]:
            self._parts.popleft()
            connection, stream = self.connection, self.stream
            if connection is not None and stream is not None:
                connection.consumed(stream, part[1])
        if isinstance(message, Packed) and self._reader is not None:
            try:
                message = self._reader.unpack(message)
            except StatusError as error:
                self.messages.clear()
                self._broken(error)
                raise self.error() from None
        if self._pending is not None and not self.messages:
            self.settle(self._pending)
        return message

    def readable(self) -> asyncio.Future[None]:
        """Done when there may be something to `take`, or the end."""
        future = self._wakes
        if future is None:
            future = self._wakes = self.core.loop.create_future()
        return future

    def _wake(self) -> None:
        future = self._wakes
        if future is not None:
            self._wakes = None
            if not future.done():
                future.set_result(None)

    def expire(self) -> None:
        """Its deadline has passed: what was not read by then is late."""
        self.messages.clear()
        super().expire()

    def cancel(self, details: str = "Locally cancelled by application!") -> bool:
        """End it as cancelled; False if it has ended already."""
        if self.status is None:
            self.messages.clear()
        return super().cancel(details)

    def end(self, status: Status) -> None:
        """Nothing more comes over the wire: its connection, which may live on, keeps nobody who listened."""
        if self._reader is not None:
            self._reader.listener = None
        super().end(status)

    def settle(self, status: Status) -> None:
        """The status, if all messages were read."""
        if self.messages:
            self._pending = status
        else:
            self._parts.clear()
            super().settle(status)
        self._wake()


class RequestStream(Rpc):
    """A call whose request is a stream."""

    pump: asyncio.Task[None] | None = None
    """Writes what the application's iterator gives."""
    _half_closed = False
    _wrote = False
    _room: asyncio.Future[None] | None = None

    def whole(self) -> bool:
        """Only while nothing was written: what was written is not kept."""
        return not (self._wrote or self._half_closed)

    async def write(self, message: bytes) -> None:
        """Send a message; returns when the next one may come.

        Raises `InvalidStateError` after the end or `half_close`, and the call's error if that ends it meanwhile.
        """
        self._check(message)
        if self.stream is None:
            await self.opened()
        if not self._send(message):
            await self.room()

    def put_bytes(self, message: bytes) -> bool:
        """Put a message of a stream that stands, once a first one was written; the connection's `flush` writes it.
        True: `room` must be awaited before the next. Raises as `write`."""
        connection, stream = self.connection, self.stream
        size = len(message)
        if self.over or self._half_closed or size > self.core.settings.max_send_message:
            self._check(message)
        if connection is None or stream is None:
            raise self._finished()
        self._wrote = True
        data = self._framed(message) if self.encoding else b"\0" + size.to_bytes(4, "big") + message
        return not connection.put(self, stream, data)

    def _check(self, message: bytes) -> None:
        if self.over:
            raise asyncio.InvalidStateError(FINISHED)
        if self._half_closed:
            raise asyncio.InvalidStateError(HALF_CLOSED)
        if len(message) > self.core.settings.max_send_message:
            self.too_large(len(message))
            raise self.error()

    def _send(self, message: bytes) -> bool:
        connection, stream = self.connection, self.stream
        if connection is None or stream is None:
            raise self._finished()
        self._wrote = True
        return connection.send(self, stream, self._framed(message))

    def _framed(self, message: bytes) -> bytes:
        encoding = self.encoding
        if not encoding or (encoding == ZSTD and self.connection and ZSTD not in self.connection.accepts):
            return frame(message)
        codec = compressor(encoding)
        return frame_compressed(message, codec) if codec else frame(message)

    async def room(self) -> None:
        """Wait until what was sent has left. Raises as `write`."""
        # First a look: whoever comes late for the news that there is room would wait for ever.
        while not self.over and (stream := self.stream) is not None:
            if self.connection is None or not self.connection.congested(self, stream):
                break
            future = self._room
            if future is None:
                future = self._room = self.core.loop.create_future()
            await future
        if self.over and (self.status is None or self.status.code is not OK or self.cancelled_here):
            raise self._finished()

    async def half_close(self) -> None:
        """Say that the request is complete."""
        if self._half_closed or self.over:
            return
        self._half_closed = True
        if self.stream is None:
            await self.opened()
        if self.connection is not None and self.stream is not None:
            self.connection.send(self, self.stream, b"", end=True)

    def _finished(self) -> BaseException:
        if self.status is None or (self.status.code is OK and not self.cancelled_here):
            return asyncio.InvalidStateError(FINISHED)
        return self.error()

    def writable(self) -> None:
        """What was written has left."""
        future = self._room
        if future is not None:
            self._room = None
            if not future.done():
                future.set_result(None)

    def end(self, status: Status) -> None:
        """Nothing more goes over the wire: whoever waits to write is told."""
        super().end(status)
        self.writable()
        pump = self.pump
        if pump is not None and pump is not asyncio.current_task(self.core.loop):
            pump.cancel()  # an iterator that never gives another message would be waited for for ever


class StreamUnaryRpc(RequestStream, UnaryResponse):
    """Many messages, one answer."""


class StreamStreamRpc(RequestStream, StreamResponse):
    """Many messages both ways."""

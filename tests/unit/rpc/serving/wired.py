"""A server's connection whose transport is the test's: it takes what it is told to take, and says so when told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from nebuladb import rpc
from nebuladb.rpc import ServerLimits, http2
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2.stream import Stream
from nebuladb.rpc.serving.connection import ServerConnection

SERVICE: Final = "nebula.test.Wired"
SECONDS: Final = 10.0
LATER: Final = 1e6
"""Seconds: longer than any limit."""


class Wire(asyncio.Transport):
    """Nothing leaves it: what is written stays in its buffer until `drain`."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        """Whose it is, until it is lost."""
        self.written = bytearray()
        self.aborted = False
        self._most = 0
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        self._size += len(data)
        if self._size > self._most and not self.protocol.paused:
            self.protocol.pause_writing()

    def drain(self) -> None:
        """The peer has read all of it."""
        self._size = 0
        if self.protocol.paused:
            self.protocol.resume_writing()

    def took(self, size: int) -> None:
        """The peer has read so many bytes more, and isn't done."""
        self._size -= size

    def lose(self) -> None:
        """The peer goes away."""
        self.aborted = True
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._most = high or 0

    def get_write_buffer_size(self) -> int:
        return self._size

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.aborted = True


class Wired:
    """A client's HTTP/2 on one side of a `Wire`, and a connection of a server on the other."""

    def __init__(self, server: Any) -> None:
        server.wired.append(self)
        self.wire = Wire()
        self.connection: Any = ServerConnection(server, self.wire, time.monotonic())
        self.wire.protocol = self.connection
        server._connections[self.connection] = "test"
        self.client = http2.Connection(
            client=True, limits=http2.Limits(stream_window=1 << 24, connection_window=1 << 28)
        )
        self.events: list[http2.Event] = []
        self._say()
        self.read()
        self._say()

    def fields(self, method: str) -> http2.Fields:
        path = f"/{SERVICE}/{method}".encode()
        kind = (b"content-type", b"application/grpc")
        return ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"te", b"trailers"), kind)

    def call(self, method: str, message: bytes = b"", *, more: http2.Fields = ()) -> Stream:
        """A unary call, to be said."""
        return self.client.call(self.fields(method) + more, frame(message))

    def open(self, method: str) -> Stream:
        """A call whose request follows, to be said."""
        return self.client.open(self.fields(method))

    async def say(self) -> None:
        """Everything that the client has to say, in one read of the server's, in as many turns as that takes."""
        await self.hear(self.client.take())
        one = self.connection
        await until(lambda: one.paused or self.wire.aborted or not (one._input or one._backlog is not None))

    async def hear(self, data: bytes) -> None:
        """The server reads `data`; in a callback, as transports read. Raises what it raises, which would end it."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def receive() -> None:
            try:
                self.connection.data_received(data)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        loop.call_soon(receive)
        await done

    def _say(self) -> None:
        self.connection.data_received(self.client.take())

    def read(self) -> list[http2.Event]:
        """The client reads all that was written; the events that it makes, which are also kept."""
        data, self.wire.written = bytes(self.wire.written), bytearray()
        self.wire.drain()
        events = self.client.receive(data, time.monotonic())
        self.events += events
        return events

    def ends(self) -> dict[int, http2.Fields]:
        """The last headers of the answers that are whole, by stream."""
        found = [event for event in self.events if isinstance(event, http2.HeadersReceived) and event.ended]
        return {event.stream.id: event.headers.fields for event in found}

    def statuses(self) -> dict[int, bytes]:
        """How calls ended: grpc-status by stream."""
        return {key: dict(fields)[b"grpc-status"] for key, fields in self.ends().items()}


@asynccontextmanager
async def serving(limits: ServerLimits, handlers: dict[str, Any]) -> AsyncIterator[Any]:
    """A server whose time the test tells (``sweep``)."""
    server: Any = rpc.server(limits=limits)
    server.add_registered_method_handlers(SERVICE, handlers)
    server.wired = []
    await server.start()
    try:
        yield server
    finally:
        for one in server.wired:
            one.wire.lose()
        async with asyncio.timeout(SECONDS):
            await server.stop(None)


async def until(condition: Callable[[], bool]) -> None:
    """Turn the loop until it holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0)


unary: Final[Any] = grpc.unary_unary_rpc_method_handler
collecting: Final[Any] = grpc.stream_unary_rpc_method_handler
chatting: Final[Any] = grpc.stream_stream_rpc_method_handler

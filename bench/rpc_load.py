"""A load client that costs little: the sans-IO connection, and requests whose bytes are made once.

It compares every payload that comes back, and the status of every call.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Final, cast

from nebuladb.rpc.http2 import (
    Connection,
    ConnectionEnded,
    DataReceived,
    Fields,
    HeadersReceived,
    Limits,
    ResponseReceived,
    StreamReset,
)

STATUS: Final = (b"grpc-status", b"0")
LIMITS: Final = Limits(stream_window=1 << 20, connection_window=1 << 24)


def headers(path: str) -> Fields:
    """Of a call, as one object: its encoding is kept."""
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"127.0.0.1"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )


class Caller(asyncio.Protocol):
    """One connection with so many calls in flight; each that ends begins the next, while `until` lies ahead."""

    def __init__(self, path: str, request: bytes, expected: bytes, in_flight: int) -> None:
        self.headers = headers(path)
        self.request = request
        self.expected = expected
        """All bytes of a right response's body."""
        self.in_flight = in_flight
        self.done = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.until = float("inf")
        self.most = 1 << 62
        """Calls to make."""
        self._begun = 0
        self._stalling = False
        self._bodies: dict[int, list[bytes]] = {}
        self._http2 = Connection(client=True, limits=LIMITS)
        self._http2.whole_responses = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def begin(self, seconds: float, calls: int) -> None:
        """Call for so long, or so often."""
        self.done = self._begun = 0
        self.finished = asyncio.get_running_loop().create_future()
        self.until = time.perf_counter() + seconds
        self.most = calls
        for _ in range(min(self.in_flight, calls)):
            self._call()
        self._flush()

    def begin_and_stall(self) -> None:
        """Make one call, and read no more when its answer begins."""
        self._stalling = True
        self.finished = asyncio.get_running_loop().create_future()
        self._call()
        self._flush()

    def _call(self) -> None:
        self._begun += 1
        self._http2.call(self.headers, self.request)

    def _flush(self) -> None:
        data = self._http2.take()
        if data:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        ended = 0
        for event in self._http2.receive(data, time.monotonic()):
            if type(event) is ResponseReceived:
                self._check(event.data, event.trailers.fields)
                ended += 1
            elif self._stalling:
                self._transport.pause_reading()
                if not self.finished.done():
                    self.finished.set_result(None)
                return
            elif type(event) is DataReceived:
                self._http2.consumed(event.stream, len(event.data))
                self._bodies.setdefault(event.stream.id, []).append(event.data)
            elif type(event) is HeadersReceived:
                if event.ended:
                    self._check(b"".join(self._bodies.pop(event.stream.id, [])), event.headers.fields)
                    ended += 1
            elif isinstance(event, StreamReset | ConnectionEnded):
                self._fail(f"{event}")
        self.done += ended
        if time.perf_counter() < self.until:
            for _ in range(min(ended, self.most - self._begun)):
                self._call()
        elif ended and self.most > self._begun:
            self.most = self._begun
        self._flush()
        if self.done == self.most and not self.finished.done():
            self.finished.set_result(None)

    def _check(self, body: bytes, fields: Fields) -> None:
        if body != self.expected or STATUS not in fields:
            self._fail(f"{len(body)} bytes where {len(self.expected)} were right, {fields}")

    def _fail(self, why: str) -> None:
        if not self.finished.done():
            self.finished.set_exception(AssertionError(why))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection was lost: {error}")

    def close(self) -> None:
        self._transport.close()


class Load:
    """So many connections of the same calls."""

    def __init__(self, port: int, path: str, request: bytes, expected: bytes, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._shape = (path, request, expected)
        self._context = context
        self.total = 0
        """Calls that were answered, of all runs."""
        self._callers: list[Caller] = []

    async def connect(self, connections: int, in_flight: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, caller = await loop.create_connection(
                lambda: Caller(*self._shape, in_flight),
                "127.0.0.1",
                self._port,
                ssl=self._context,
                server_hostname="localhost" if self._context else None,
            )
            self._callers.append(caller)

    async def run(self, seconds: float, calls: int = 1 << 62) -> float:
        """Call for so long, or so often a connection; calls a second. Raises `AssertionError` for a wrong answer."""
        began = time.perf_counter()
        for caller in self._callers:
            caller.begin(seconds, calls)
        for caller in self._callers:
            await asyncio.wait_for(caller.finished, seconds + 120)
        done = sum(caller.done for caller in self._callers)
        self.total += done
        return done / (time.perf_counter() - began)

    async def stall(self) -> None:
        """Make one call on each connection, and read no more once something has come."""
        for caller in self._callers:
            caller.begin_and_stall()
        for caller in self._callers:
            await asyncio.wait_for(caller.finished, 60)

    def close(self) -> None:
        for caller in self._callers:
            caller.close()

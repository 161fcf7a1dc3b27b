"""A client that says just what a test wants, frame by frame."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hpack import Decoder, Encoder

from nebuladb.rpc.framing import frame as message
from nebuladb.rpc.http2 import frames as wire
from tests.rpc.service import path

SECONDS: Final = 10.0
"""More than any of these tests may wait for anything."""


class Frame(NamedTuple):
    """What came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class RawClient:
    """Frames out, frames in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.headers: list[tuple[int, dict[str, str]]] = []
        """(stream, header list) of all that came."""
        self.data: dict[int, bytearray] = {}

    @classmethod
    async def connect(
        cls, address: str, *, settings: dict[int, int] | None = None, hello: bool = True, **tls: Any
    ) -> RawClient:
        """Connected, and greeted."""
        host, _, port = address.rpartition(":")
        client = cls(*await asyncio.open_connection(host, int(port), limit=1 << 24, **tls))
        if hello:
            client.send(wire.PREFACE + wire.settings_frame(settings or {}))
        return client

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.send(wire.frame(kind, flags, stream, payload))

    def request(
        self, stream: int, method: str, *, end: bool = False, replace: dict[str, str | None] | None = None
    ) -> None:
        """HEADERS of a call; `replace` changes, adds and (None) takes away headers."""
        headers: dict[str, str | None] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path(method),
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        headers.update(replace or {})
        block = self.encoder.encode([(name, value) for name, value in headers.items() if value is not None])
        flags = wire.END_HEADERS | (wire.END_STREAM if end else 0)
        self.frame(wire.HEADERS, flags, stream, block)

    def body(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """DATA with one message."""
        self.frame(wire.DATA, wire.END_STREAM if end else 0, stream, message(data))

    def call(self, stream: int, method: str, data: bytes, **more: Any) -> None:
        """A unary call."""
        self.request(stream, method, **more)
        self.body(stream, data)

    def window(self, stream: int, size: int) -> None:
        self.send(wire.window_update_frame(stream, size))

    async def read(self) -> Frame:
        """The next frame; decodes what it must. Raises EOFError where the connection ends."""
        async with asyncio.timeout(SECONDS):
            try:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise EOFError from error
        got = Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
        if got.kind == wire.HEADERS:
            assert got.flags & wire.END_HEADERS
            fields: Any = self.decoder.decode(payload)
            self.headers.append((got.stream, dict(fields)))
        elif got.kind == wire.DATA:
            self.data.setdefault(got.stream, bytearray()).extend(payload)
        return got

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first frame of this sort; those before it are read too."""
        while not wanted(got := await self.read()):
            pass
        return got

    async def end_of(self, stream: int) -> dict[str, str]:
        """Read to the end of a stream. Returns its last headers."""
        await self.until(lambda got: got.stream == stream and (bool(got.flags & 1) and got.kind in (0, 1)))
        return next(headers for number, headers in reversed(self.headers) if number == stream)

    async def goaway(self) -> int:
        """The error code of the GOAWAY that comes."""
        got = await self.until(lambda got: got.kind == wire.GOAWAY)
        return int.from_bytes(got.payload[4:8], "big")

    async def ended(self) -> None:
        """Read until the server closes."""
        try:
            while True:
                await self.read()
        except EOFError:
            pass

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

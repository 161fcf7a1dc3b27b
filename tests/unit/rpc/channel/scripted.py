"""A server whose every frame the test decides: our own connection's server side behind a listening socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from nebuladb.rpc import http2
from nebuladb.rpc.framing import frame

HEADERS: http2.Fields = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: http2.Fields = ((b"grpc-status", b"0"),)


class Peer(asyncio.Protocol):
    """One accepted connection. `h2` is its state; after using it call `flush`."""

    def __init__(self, script: Callable[[Peer, Any], None], limits: http2.Limits) -> None:
        self.h2 = http2.Connection(client=False, limits=limits)
        self.script = script
        self.transport: Any = None
        self.lost = False
        self.mute = False
        """It says nothing at all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.script(self, "connected")
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive(data, monotonic()):
            self.script(self, event)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def flush(self) -> None:
        if (data := self.h2.take()) and not (self.mute or self.transport.is_closing()):
            self.transport.write(data)

    def answer(self, stream: Any, message: bytes = b"answer") -> None:
        self.h2.respond(stream, HEADERS, frame(message), TRAILERS)


def echoes(peer: Peer, event: Any) -> None:
    """A script: answer everything."""
    if isinstance(event, http2.HeadersReceived) and event.ended:
        peer.h2.respond(event.stream, HEADERS, event.data or frame(b""), TRAILERS)


class Scripted:
    """Listens, and keeps its peers."""

    def __init__(self, script: Callable[[Peer, Any], None] = echoes, limits: http2.Limits | None = None) -> None:
        self.script = script
        self.limits = limits or http2.Limits()
        self.peers: list[Peer] = []
        self.address = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Scripted:
        def accept() -> Peer:
            self.peers.append(Peer(lambda peer, event: self.script(peer, event), self.limits))
            return self.peers[-1]

        loop = asyncio.get_running_loop()
        host, _, port = (self.address or "127.0.0.1:0").rpartition(":")
        self._server = await loop.create_server(accept, host, int(port), reuse_address=True)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self.peers:
            if peer.transport is not None:
                peer.transport.abort()
        await asyncio.sleep(0)

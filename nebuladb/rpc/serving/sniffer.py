"""The first bytes of a connection: HTTP/2, or HTTP/1.1 for somebody else, or neither."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final, cast

from nebuladb.rpc.http2.frames import PREFACE
from nebuladb.rpc.serving.connection import ServerConnection
from nebuladb.rpc.tls import ALPN_HTTP1, ALPN_HTTP2

if TYPE_CHECKING:
    from nebuladb.rpc.serving.lifecycle import Server

_METHOD: Final = re.compile(rb"[A-Z]{1,24}(?: |\Z)")
"""How a request of HTTP/1.1 begins."""
_HTTP1: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 28\r\n\r\nThis port speaks HTTP/2 only"
)
_NEITHER: Final = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Sniffer(asyncio.Protocol):
    """A connection's protocol until it is known what it speaks."""

    __slots__ = ("_closing", "_head", "_opened", "_server", "_transport", "address")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._head = b""
        """What came and decides nothing yet: less than the preface."""
        self._closing = 0.0
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        self._opened = time.monotonic()
        name = transport.get_extra_info("peername")
        self.address = str(name[0]) if isinstance(name, tuple) and name else ""
        one = transport.get_extra_info("socket")
        if not self._server.connected(self, one.fileno() if one is not None else 0):
            transport.abort()
            return
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() == ALPN_HTTP1:
            self._hand_over(b"")
        elif secured is not None and secured.selected_alpn_protocol() != ALPN_HTTP2:
            # gRPC says that a client without ALPN is refused: it might take what it gets for something else.
            self._server.disconnected(self)
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._head:
            data = self._head + data
        size = min(len(data), len(PREFACE))
        if data[:size] == PREFACE[:size]:
            if size < len(PREFACE):
                self._head = data
                return
            connection = ServerConnection(self._server, self._transport, time.monotonic())
            self._server.became(self, connection)
            self._transport.set_protocol(connection)
            connection.data_received(data)
        elif _METHOD.match(data):
            self._hand_over(data)
        else:
            self._refuse(_NEITHER)

    def _hand_over(self, data: bytes) -> None:
        """HTTP/1.1: from here on the connection is the other protocol's, and is bounded by it."""
        if self._server.http1 is None:
            self._refuse(_HTTP1)
            return
        self._server.disconnected(self)
        protocol = self._server.http1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    def _refuse(self, answer: bytes) -> None:
        self._closing = time.monotonic()
        self._transport.write(answer)
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.disconnected(self)

    def sweep(self, now: float) -> None:
        """Close what says nothing."""
        limits = self._server.limits
        if now - self._opened > limits.http2.preface_seconds or (
            self._closing and now - self._closing > limits.linger_seconds
        ):
            self._transport.abort()

    def shutdown(self) -> None:
        """It has said nothing: nothing is lost."""
        self._transport.abort()

    def stop(self, why: str) -> None:
        """The same."""
        self._transport.abort()

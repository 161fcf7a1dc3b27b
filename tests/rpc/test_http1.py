"""One port, two protocols."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from nebuladb import rpc
from tests.rpc.certificates import Authority, needs_openssl
from tests.rpc.raw import RawClient
from tests.rpc.service import handlers, serving

GET = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


class Greeter(asyncio.Protocol):
    """An HTTP/1.1 server that knows one answer: the request itself."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.got.endswith(b"\r\n\r\n"):
            body = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(self.got), self.got)
            self.transport.write(body)  # type: ignore[attr-defined]
            self.got = b""


async def exchange(client: RawClient, data: bytes) -> bytes:
    client.send(data)
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await client.reader.readexactly(len(data))


@pytest.mark.parametrize("request_", [GET, GET.replace(b"GET", b"PRIVATE"), b"POST / HTTP/1.1\r\n\r\n"])
async def test_http1_is_handed_over(request_: bytes) -> None:
    async with serving(http1=Greeter) as (address, server):
        client, other = await RawClient.connect(address, hello=False), await RawClient.connect(address)
        assert await exchange(client, request_) == request_
        assert await exchange(client, request_) == request_
        other.call(1, "Echo", b"x")
        assert await other.end_of(1) == {"grpc-status": "0"}
        assert len(server._connections) == 1
        await client.close()
        await other.close()


async def test_byte_by_byte() -> None:
    async with serving(http1=Greeter) as (address, _):
        client = await RawClient.connect(address, hello=False)
        for byte in b"PROPFIND / HTTP/1.1\r\n\r":
            client.send(bytes((byte,)))
            await client.writer.drain()
            await asyncio.sleep(0)
        client.send(b"\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await client.close()


async def test_without_somebody_to_hand_it_to() -> None:
    async with serving() as (address, server):
        client = await RawClient.connect(address, hello=False)
        client.send(GET)
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 505")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
        await client.close()
        async with asyncio.timeout(5):
            while server._connections:  # noqa: ASYNC110 - the transport says it to the server only
                await asyncio.sleep(0.001)


@needs_openssl
async def test_by_alpn(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    credentials = rpc.ssl_server_credentials([authority.issue("server")])
    server = rpc.server(handlers=(handlers(),), http1=Greeter)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.set_alpn_protocols(["http/1.1"])
        client = await RawClient.connect(f"127.0.0.1:{port}", hello=False, ssl=context)
        assert await exchange(client, GET) == GET
        await client.close()
        context.set_alpn_protocols(["http/1.1", "h2"])
        client = await RawClient.connect(f"127.0.0.1:{port}", ssl=context)
        client.call(1, "Echo", b"x")
        assert await client.end_of(1) == {"grpc-status": "0"}
        await client.close()
    finally:
        await server.stop(None)

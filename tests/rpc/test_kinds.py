"""grpcio's clients, synchronous and asynchronous, against our server: four kinds of call, all ways to write them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc
from tests.rpc.service import SERVICE, channel_to, handlers, path, serving

LARGE = bytes(range(256)) * (1 << 14)  # 4 MiB, just the limit
UNARY = ["Echo", "EchoLater", "PlainEcho"]
COUNTS = ["Count", "CountByContext", "PlainCount"]
TOTALS = ["Total", "TotalByContext", "PlainTotal"]
CHATS = ["Chat", "ChatByContext", "PlainChat"]
ROOM = [("grpc.max_receive_message_length", 1 << 23)]


def all_kinds(address: str) -> None:
    """With the synchronous client."""
    channel: Any
    with grpc.insecure_channel(address, options=ROOM) as channel:
        for method in UNARY:
            call = channel.unary_unary(path(method))
            assert call(b"hi", timeout=10) == b"hi"
            assert call(b"", timeout=10) == b""
            assert call(LARGE, timeout=20) == LARGE
        for method in COUNTS:
            got = list(channel.unary_stream(path(method))(b"300", timeout=10))
            assert got == [b"%d" % number for number in range(300)]
            assert list(channel.unary_stream(path(method))(b"0", timeout=10)) == []
        for method in TOTALS:
            assert channel.stream_unary(path(method))(iter([LARGE[:100_000]] * 5), timeout=10) == b"500000"
            assert channel.stream_unary(path(method))(iter([]), timeout=10) == b"0"
        for method in CHATS:
            sent = [LARGE[: size * 1000] for size in range(20)]
            assert list(channel.stream_stream(path(method))(iter(sent), timeout=10)) == sent


async def test_the_synchronous_client() -> None:
    async with serving() as (address, server):
        await asyncio.to_thread(all_kinds, address)
        assert server.calls == 0


async def test_the_asynchronous_client() -> None:
    async with serving() as (address, server), channel_to(address, options=ROOM) as channel:
        for method in UNARY:
            call = channel.unary_unary(path(method))
            assert await asyncio.gather(*(call(b"%d" % n) for n in range(100))) == [b"%d" % n for n in range(100)]
            assert await call(LARGE) == LARGE
        for method in COUNTS:
            stream = channel.unary_stream(path(method))(b"1000")
            assert [part async for part in stream] == [b"%d" % number for number in range(1000)]
        for method in TOTALS:
            summed = channel.stream_unary(path(method))
            assert await summed(iter([b"abc"] * 1000)) == b"3000"
        for method in CHATS:
            chat = channel.stream_stream(path(method))()
            for number in range(50):  # in turns: nothing may wait for the end of the requests
                await chat.write(b"%d" % number)
                assert await chat.read() == b"%d" % number
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            assert await chat.code() == grpc.StatusCode.OK
        assert server.calls == 0


async def test_a_response_before_the_requests_end() -> None:
    async def first(requests: Any, context: Any) -> bytes:
        async for request in requests:
            return bytes(request)
        return b"none"

    async with (
        serving({"First": ("stream_unary", first)}) as (address, _),
        channel_to(address) as channel,
    ):
        method = channel.stream_unary(path("First"))
        call = method()
        await call.write(b"only")
        assert await call == b"only"


async def test_unknown_methods() -> None:
    def ask(address: str) -> Iterator[tuple[grpc.StatusCode, str | None]]:
        channel: Any
        with grpc.insecure_channel(address) as channel:
            for method in ("/nebula.test.Echo/Nothing", "/nobody/Echo", "/"):
                with pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(method)(b"", timeout=5)
                yield error.value.code(), error.value.details()

    async with serving() as (address, _):
        answers = await asyncio.to_thread(lambda: list(ask(address)))
    assert {code for code, _ in answers} == {grpc.StatusCode.UNIMPLEMENTED}
    assert [text for _, text in answers] == [
        "unknown method Nothing for service nebula.test.Echo",
        "unknown service nobody",
        'malformed method name: "/"',
    ]


async def test_registered_handlers_come_first() -> None:
    async def other(request: bytes, context: Any) -> bytes:
        return b"registered"

    server = rpc.server()
    server.add_generic_rpc_handlers((handlers(),))
    server.add_registered_method_handlers(SERVICE, {"Echo": grpc.unary_unary_rpc_method_handler(other)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with channel_to(f"127.0.0.1:{port}") as channel:
            echo = channel.unary_unary(path("Echo"))
            later = channel.unary_unary(path("EchoLater"))
            assert await echo(b"x") == b"registered"
            assert await later(b"x") == b"x"
    finally:
        await server.stop(None)

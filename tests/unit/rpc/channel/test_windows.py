"""What nobody reads, or reads after a call's end, gives the connection's window back, on both sides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import Limits
from nebuladb.rpc.http2.events import HeadersReceived
from nebuladb.rpc.http2.stream import State
from tests.unit.rpc.channel.echo import SECONDS, SERVICE, status_of, unary, until
from tests.unit.rpc.channel.scripted import HEADERS, TRAILERS, Peer, Scripted

PIECE = b"x" * 16_000
PIECES = 60
"""Less than a stream's window, so that all of them come without being read."""
CALLS = 10
"""With so many pieces each more than the connection's window."""
LARGER = b"\0\x7f\xff\xff\xff"
"""The prefix of a message that nobody takes."""


def streams(peer: Peer, event: Any) -> None:
    """A script: all the pieces, and the end."""
    if isinstance(event, HeadersReceived):
        peer.h2.send_headers(event.stream, HEADERS)
        peer.h2.send_data(event.stream, frame(PIECE) * PIECES)
        peer.h2.send_headers(event.stream, TRAILERS, end=True)


def connection_of(channel: rpc.Channel) -> Any:
    (connection,) = channel._core._ready
    return connection


async def test_an_answer_that_is_read_after_its_end(channels: Any) -> None:
    async with Scripted(streams) as server, asyncio.timeout(SECONDS):
        channel = channels(server.address)
        for _ in range(CALLS):
            call = channel.unary_stream(f"/{SERVICE}/Many")(b"")
            await until(lambda call=call: call._rpc.over)
            assert connection_of(channel).http2._unread == 0
            assert [message async for message in call] == [PIECE] * PIECES
        connection_of(channel).http2.check()


async def test_an_answer_that_is_cancelled_after_its_end(channels: Any) -> None:
    async with Scripted(streams) as server, asyncio.timeout(SECONDS):
        channel = channels(server.address)
        for _ in range(CALLS):
            call = channel.unary_stream(f"/{SERVICE}/Many")(b"")
            await until(lambda call=call: call._rpc.over)
            assert await call.read() == PIECE
            assert call.cancel()
        assert connection_of(channel).http2._unread == 0
        connection_of(channel).http2.check()


async def test_a_call_that_fails_over_what_came_with_its_end(channels: Any) -> None:
    """The rest of the answer stood in the same read, behind the message that nobody takes."""

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived) and event.data == frame(b"large"):
            peer.h2.send_headers(event.stream, HEADERS)
            for _ in range(3):
                peer.h2.send_data(event.stream, LARGER + bytes(1_000))
            peer.h2.send_headers(event.stream, TRAILERS, end=True)
        elif isinstance(event, HeadersReceived):
            peer.answer(event.stream)

    async with Scripted(script) as server:
        channel = channels(server.address)
        call = channel.unary_stream(f"/{SERVICE}/Many")(b"large")
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
            await call.read()
        assert await status_of(unary(channel)(b"large")) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(channel)(b"small") == b"answer"
        assert len(server.peers) == 1, "the connection is the same"
        assert connection_of(channel).http2._unread == 0


async def test_answers_that_nobody_reads_keep_no_other_call() -> None:
    """Watches whose readers are busy, say: each is held at its own window, and all others go on."""

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived) and event.data == frame(b"many"):
            peer.h2.send_headers(event.stream, HEADERS)
            peer.h2.send_data(event.stream, frame(PIECE) * 2 * PIECES)
        elif isinstance(event, HeadersReceived):
            peer.answer(event.stream)

    async with Scripted(script) as server, rpc.insecure_channel(server.address) as channel:
        calls = [channel.unary_stream(f"/{SERVICE}/Many")(b"many") for _ in range(CALLS)]
        for call in calls:
            assert await call.read() == PIECE
        assert await unary(channel)(b"small", timeout=SECONDS / 4) == b"answer"
        held = connection_of(channel).http2
        await until(lambda: held._unread >= CALLS * (PIECES - 1) * len(PIECE))
        assert held._unread <= CALLS * Limits().stream_window
        for call in calls:
            for _ in range(2 * PIECES - 1):
                assert await call.read() == PIECE
            call.cancel()
        assert len(server.peers) == 1
        held.check()


async def returns(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"seen enough"


async def aborts(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "seen enough")  # type: ignore[no-any-return]


async def reads_after_its_end(requests: AsyncIterator[bytes], context: Any) -> bytes:
    with contextlib.suppress(grpc.aio.AbortError):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "seen enough")
    assert [request async for request in requests] == [PIECE] * PIECES
    context.connection.server.seen.append(True)
    return b""


@pytest.mark.parametrize("handler", [returns, aborts, reads_after_its_end])
async def test_requests_that_a_handler_never_read(
    channels: Any, handler: Callable[[AsyncIterator[bytes], Any], Awaitable[bytes]]
) -> None:
    release = asyncio.Event()

    async def held(requests: AsyncIterator[bytes], context: Any) -> bytes:
        await release.wait()
        return await handler(requests, context)

    server: Any = rpc.server()
    server.seen = []
    server.add_registered_method_handlers(SERVICE, {"Collect": grpc.stream_unary_rpc_method_handler(held)})
    channel = channels(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(CALLS):
                release.clear()
                call = channel.stream_unary(f"/{SERVICE}/Collect")(iter([PIECE] * PIECES))
                await until(lambda: all_is_here(server))
                (connection,) = connections_of(server)
                assert connection.http2._unread == PIECES * len(frame(PIECE))
                release.set()
                assert await call.details() in ("", "seen enough")
                assert connection.http2._unread == 0
                connection.http2.check()
    finally:
        await server.stop(None)
    assert len(server.seen) == (CALLS if handler is reads_after_its_end else 0)


def connections_of(server: Any) -> list[Any]:
    """Those that speak HTTP/2 already."""
    return [one for one in server._connections if hasattr(one, "http2")]


def all_is_here(server: Any) -> bool:
    """The request of the one call has come to its end."""
    states = [stream.state for one in connections_of(server) for stream in one.http2.streams.values()]
    return states == [State.HALF_CLOSED_REMOTE]

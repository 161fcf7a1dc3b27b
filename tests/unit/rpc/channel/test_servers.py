"""Servers that break the protocol, answer oddly or fall silent: the right status, and nothing that stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nebuladb import rpc
from nebuladb.rpc import http2
from nebuladb.rpc.channel import connection as connection_module
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import ErrorCode, HeadersReceived, StreamReset
from tests.unit.rpc.channel.echo import (
    QUICK,
    SECONDS,
    SERVICE,
    idle,
    status_of,
    unary,
    until,
)
from tests.unit.rpc.channel.scripted import HEADERS, TRAILERS, Peer, Scripted


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 100, b"\0\0\1\0\0\0\0\0\0x", b""],
)
async def test_garbage_for_a_preface(channels: Any, garbage: bytes) -> None:
    def script(peer: Peer, event: Any) -> None:
        peer.h2.take()
        if event == "connected":
            peer.transport.write(garbage)
            peer.transport.close()

    async with Scripted(script) as server:
        assert await status_of(unary(channels(server.address))(b"x")) is grpc.StatusCode.UNAVAILABLE


async def test_garbage_in_the_middle_ends_the_calls_and_the_next_ones_go_on(channels: Any) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            if peer is server.peers[0]:
                peer.flush()
                peer.transport.write(b"\xff" * 20)
            else:
                peer.answer(event.stream)

    async with Scripted(script) as server:
        channel = channels(server.address)
        calls = [unary(channel)(b"x") for _ in range(3)]
        assert [await status_of(call) for call in calls] == [grpc.StatusCode.UNAVAILABLE] * 3
        assert await unary(channel)(b"x") == b"answer"


async def test_a_server_that_never_answers_the_handshake(channels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebuladb.rpc.channel.settings.SHORTEST_CONNECT", 0.02)

    def script(peer: Peer, event: Any) -> None:
        peer.mute = True

    async with Scripted(script) as server:
        # It must not come again while the server closes: asyncio loses what is being accepted then.
        names = ("grpc.initial_reconnect_backoff_ms", "grpc.max_reconnect_backoff_ms")
        options = (("grpc.min_reconnect_backoff_ms", 1), *((name, 60_000) for name in names))
        channel = channels(server.address, options=options)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(unary(channel)(b"x"), SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "no HTTP/2 preface" in (caught.value.details() or "")
        await until(lambda: server.peers[0].lost)


ODD: list[tuple[str, http2.Fields, bytes, http2.Fields, grpc.StatusCode]] = [
    ("no answer", HEADERS, b"", TRAILERS, grpc.StatusCode.INTERNAL),
    ("half an answer", HEADERS, frame(b"abc")[:6], TRAILERS, grpc.StatusCode.INTERNAL),
    ("two answers", HEADERS, frame(b"a") + frame(b"b"), TRAILERS, grpc.StatusCode.INTERNAL),
    ("unknown flags", HEADERS, b"\7" + frame(b"a")[1:], TRAILERS, grpc.StatusCode.INTERNAL),
    ("compressed by nothing", HEADERS, b"\1" + frame(b"a")[1:], TRAILERS, grpc.StatusCode.INTERNAL),
    ("too large", HEADERS, frame(bytes(2000)), TRAILERS, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ("said to be too large", HEADERS, b"\0\xff\xff\xff\xff", TRAILERS, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ("no status", HEADERS, frame(b"a"), ((b"x", b"y"),), grpc.StatusCode.UNKNOWN),
    ("not gRPC", ((b":status", b"200"),), frame(b"a"), TRAILERS, grpc.StatusCode.UNKNOWN),
    ("a proxy's answer", ((b":status", b"503"),), b"busy", TRAILERS, grpc.StatusCode.UNAVAILABLE),
    ("no base64", (*HEADERS, (b"x-bin", b"*")), frame(b"a"), TRAILERS, grpc.StatusCode.INTERNAL),
    ("odd encoding", (*HEADERS, (b"grpc-encoding", b"lz")), frame(b"a"), TRAILERS, grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("headers", "body", "trailers", "status"), [odd[1:] for odd in ODD], ids=[o[0] for o in ODD])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_odd_answers(
    channels: Any, headers: http2.Fields, body: bytes, trailers: http2.Fields, status: grpc.StatusCode, pieces: int
) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            peer.h2.send_headers(event.stream, headers)
            if pieces > 1:
                peer.flush()
            peer.h2.send_data(event.stream, body)
            if pieces > 1:
                peer.flush()
            peer.h2.send_headers(event.stream, trailers, end=True)

    async with Scripted(script) as server:
        channel = channels(server.address, options=(("grpc.max_receive_message_length", 1000),))
        assert await status_of(unary(channel)(b"x")) is status


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_body_without_end_is_not_kept(channels: Any, kind: str) -> None:
    reset = asyncio.Event()

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            peer.h2.send_headers(event.stream, HEADERS)
            peer.h2.send_data(event.stream, b"\0\0\0\x07\xff" + bytes(1000))
            peer.h2.send_data(event.stream, bytes(2000))
        elif isinstance(event, StreamReset):
            reset.set()

    async with Scripted(script) as server:
        channel = channels(server.address, options=(("grpc.max_receive_message_length", 1000),))
        call = unary(channel)(b"x") if kind == "unary" else channel.unary_stream(f"/{SERVICE}/Many")(b"x").read()
        assert await status_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await asyncio.wait_for(reset.wait(), SECONDS)


async def test_an_answer_that_is_not_taken_gets_no_more_than_the_window(channels: Any) -> None:
    sent = 0

    def script(peer: Peer, event: Any) -> None:
        nonlocal sent
        if isinstance(event, HeadersReceived):
            peer.h2.send_headers(event.stream, HEADERS)
            for number in range(200):
                peer.h2.send_data(event.stream, frame(number.to_bytes(2, "big") * 500))
            peer.h2.send_headers(event.stream, TRAILERS, end=True)
        sent = 200 * 1005 - peer.h2.waiting

    async with Scripted(script) as server:
        channel = channels(server.address, limits=http2.Limits(stream_window=1 << 16, connection_window=1 << 16))
        call = channel.unary_stream(f"/{SERVICE}/Many")(b"x")
        await until(lambda: sent)
        for _ in range(100):
            await asyncio.sleep(0)
        assert sent <= 1 << 16
        number = 0
        async for message in call:
            assert message == number.to_bytes(2, "big") * 500
            number += 1
        assert number == 200


# --- keepalive -------------------------------------------------------------------------------------------------------


async def test_a_silent_server_is_left(channels: Any) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            peer.transport.pause_reading()

    async with Scripted(script) as server:
        options = (("grpc.keepalive_time_ms", 20), ("grpc.keepalive_timeout_ms", 20))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(unary(channels(server.address, options=options))(b"x"), SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "silent" in (caught.value.details() or "")


async def test_a_slow_answer_is_waited_for_as_long_as_pings_are_answered(channels: Any) -> None:
    pings = 0
    held: list[Any] = []

    class Counting(http2.Connection):
        """Counts the pings that it answers."""

        def take(self) -> bytes:
            nonlocal pings
            data = super().take()
            pings += data.count(b"\0\0\x08\x06\1" + bytes(4) + connection_module.KEEPALIVE)
            return data

    def script(peer: Peer, event: Any) -> None:
        if event == "connected":
            peer.h2 = Counting(client=False)
        elif isinstance(event, HeadersReceived):
            held.append(event.stream)

    async with Scripted(script) as server:
        options = (("grpc.keepalive_time_ms", 20), ("grpc.keepalive_timeout_ms", 10_000))
        call = unary(channels(server.address, options=options))(b"x")
        await until(lambda: pings >= 3)
        assert not call.done()
        server.peers[0].answer(held[0])
        server.peers[0].flush()
        assert await call == b"answer"


async def test_pings_that_are_too_many_become_fewer(channels: Any) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            if len(server.peers) <= 2:
                peer.h2.close(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
                peer.flush()
                peer.transport.close()
            else:
                peer.answer(event.stream)

    async with Scripted(script) as server:
        channel = channels(server.address, options=(("grpc.keepalive_time_ms", 30_000),))
        while len(server.peers) < 3:
            await asyncio.gather(unary(channel)(b"x"), return_exceptions=True)
        (subchannel,) = channel._core._subchannels.values()
        assert subchannel._keepalive == 120.0


# --- anything --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_server_says_each_call_ends_once_and_nothing_stays(data: st.DataObject) -> None:
    """Octets of real answers, cut, repeated, reordered and changed."""
    pieces = data.draw(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)), max_size=12))
    kind = data.draw(st.sampled_from(["unary", "stream"]))

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            peer.flush()
            for piece in pieces:
                peer.transport.write(piece)
            peer.transport.close()

    async def run() -> None:
        told: list[Any] = []
        async with Scripted(script) as server, rpc.insecure_channel(server.address, options=QUICK) as channel:
            if kind == "unary":
                call: Any = unary(channel)(b"x")
            else:
                call = channel.unary_stream(f"/{SERVICE}/Many")(b"x")
            call.add_done_callback(told.append)
            if kind == "unary":
                await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), SECONDS)
            else:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await asyncio.wait_for(_drain(call), SECONDS)
            await call.code()
            assert told == [call]
            await until(lambda: idle(channel))

    asyncio.run(run())


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


def _answers() -> list[bytes]:
    """Frames of an answer on the first stream, one by one, and some that a server may say besides."""
    peer = http2.Connection(client=False)
    client = http2.Connection(client=True)
    client.call(((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a")), frame(b"x"))
    peer.receive(client.take(), 0.0)
    peer.take()
    stream = peer.streams[1]
    pieces = []
    steps: list[Callable[[], None]] = [
        lambda: peer.send_headers(stream, HEADERS),
        lambda: peer.send_data(stream, frame(b"answer")),
        lambda: peer.send_headers(stream, TRAILERS, end=True),
        lambda: peer.ping(bytes(8)),
        peer.shutdown,
        peer.finish,
    ]
    for step in steps:
        step()
        pieces.append(peer.take())
    reset = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0"
    return [*pieces, b"".join(pieces[:3]), reset + b"\x07", reset + b"\x08", b"\0\0\0\x04\0\0\0\0\0"]


PIECES = _answers()

"""Connections: made, lost, made again, refused, retired; what each means for calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc
from nebuladb.rpc import http2
from nebuladb.rpc.channel import connection as connection_module
from nebuladb.rpc.channel import dispatcher
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import ErrorCode, HeadersReceived, StreamReset
from tests.integration.proxy import Proxy
from tests.unit.rpc.channel.echo import SECONDS, SERVICE, Echo, Servers, idle, until
from tests.unit.rpc.channel.scripted import HEADERS, TRAILERS, Peer, Scripted

State = grpc.ChannelConnectivity
QUICK = (("grpc.initial_reconnect_backoff_ms", 10), ("grpc.max_reconnect_backoff_ms", 10))
ENGINES = ["nebula", "grpcio"]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def unary(channel: Any) -> Any:
    return channel.unary_unary(f"/{SERVICE}/Unary")


async def status_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, SECONDS)
    return caught.value.code()


async def ready(channel: Any) -> None:
    await asyncio.wait_for(channel.channel_ready(), SECONDS)


@pytest.fixture
async def channels() -> AsyncIterator[Any]:
    opened: list[rpc.Channel] = []

    def open_channel(target: str, **more: Any) -> rpc.Channel:
        more["options"] = (*QUICK, *more.get("options", ()))
        opened.append(rpc.insecure_channel(target, **more))
        return opened[-1]

    yield open_channel
    for channel in opened:
        await until(lambda: idle(channel))  # noqa: B023
        await channel.close()


async def test_states(channels: Any) -> None:
    channel = channels(free_address())
    assert channel.get_state() is State.IDLE
    assert channel.get_state(try_to_connect=True) is State.IDLE
    assert channel.get_state() is State.CONNECTING
    await asyncio.wait_for(channel.wait_for_state_change(State.CONNECTING), SECONDS)
    assert channel.get_state() is State.TRANSIENT_FAILURE
    await asyncio.wait_for(channel.wait_for_state_change(State.TRANSIENT_FAILURE), SECONDS)
    assert channel.get_state() is State.CONNECTING
    await channel.close()
    assert channel.get_state() is State.SHUTDOWN
    with pytest.raises(grpc.aio.UsageError):
        unary(channel)(b"x")
    with pytest.raises(grpc.aio.UsageError):
        await channel.channel_ready()


async def test_nobody_there(channels: Any) -> None:
    address = free_address()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(channels(address))(b"x")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert address in (caught.value.details() or "")


@pytest.mark.parametrize("engine", ENGINES)
async def test_waiting_for_a_server_that_comes_later(channels: Any, servers: Servers, engine: str) -> None:
    address = free_address()
    channel = channels(address)
    assert await status_of(unary(channel)(b"x")) is grpc.StatusCode.UNAVAILABLE
    call = unary(channel)(b"x", wait_for_ready=True, timeout=SECONDS)
    late = unary(channel)(b"y", wait_for_ready=True, timeout=0.01)
    assert await status_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
    await servers.start(engine, Echo(), address)
    assert await asyncio.wait_for(call, SECONDS) == b"x"


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_server_that_comes_again(channels: Any, servers: Servers, engine: str) -> None:
    server, address = await servers.start(engine, Echo())
    channel = channels(address)
    for _ in range(3):
        assert await unary(channel)(b"x", wait_for_ready=True, timeout=SECONDS) == b"x"
        await servers.stop(server)
        await until(lambda: channel.get_state() is not State.READY)
        server, _ = await servers.start(engine, Echo(), address)
    await ready(channel)


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_server_that_stops_lets_calls_end(channels: Any, servers: Servers, engine: str) -> None:
    echo = Echo()
    server, address = await servers.start(engine, echo)
    channel = channels(address)
    call = unary(channel)(b"wait")
    await asyncio.wait_for(echo.started.wait(), SECONDS)
    stopping = asyncio.create_task(servers.stop(server, SECONDS))
    await until(lambda: channel.get_state() is State.IDLE)
    assert not call.done()
    echo.release.set()
    assert await asyncio.wait_for(call, SECONDS) == b"wait"
    await stopping


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_connection_cut_in_mid_stream(channels: Any, servers: Servers, engine: str) -> None:
    echo = Echo()
    _, address = await servers.start(engine, echo)
    async with Proxy(address) as proxy:
        channel = channels(proxy.address)
        call = channel.unary_stream(f"/{SERVICE}/Many")(b"2 wait")
        assert [await call.read(), await call.read()] == [b"0", b"1"]
        other = unary(channel)(b"wait")
        await asyncio.wait_for(echo.started.wait(), SECONDS)
        proxy.cut()
        assert await status_of(call.read()) is grpc.StatusCode.UNAVAILABLE
        assert await status_of(other) is grpc.StatusCode.UNAVAILABLE
        assert channel.get_state() is State.IDLE


async def test_messages_that_came_before_the_cut_are_read(channels: Any) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            peer.h2.send_headers(event.stream, HEADERS)
            peer.h2.send_data(event.stream, frame(b"a") + frame(b"b") + frame(b"c")[:4])
            peer.flush()
            peer.transport.close()

    async with Scripted(script) as server:
        channel = channels(server.address)
        call = channel.unary_stream(f"/{SERVICE}/Many")(b"")
        await until(lambda: channel.get_state() is State.IDLE and server.peers and server.peers[0].lost)
        assert [await call.read(), await call.read()] == [b"a", b"b"]
        assert await status_of(call.read()) is grpc.StatusCode.UNAVAILABLE


# --- GOAWAY and refusals ---------------------------------------------------------------------------------------------


async def test_goaway_moves_new_calls_and_lets_old_ones_end(channels: Any) -> None:
    held: list[Any] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            if peer is server.peers[0]:
                held.append(event.stream)
                peer.h2.shutdown()
                peer.h2.finish()
            else:
                peer.answer(event.stream, b"second")

    async with Scripted(script) as server:
        channel = channels(server.address)
        first = unary(channel)(b"x")
        await until(lambda: held and channel.get_state() is State.IDLE)
        assert await unary(channel)(b"y") == b"second"
        assert not first.done()
        server.peers[0].answer(held[0], b"first")
        server.peers[0].flush()
        assert await first == b"first"
        await until(lambda: server.peers[0].lost)
        assert len(server.peers) == 2
        assert not server.peers[1].lost


async def test_calls_above_the_last_stream_are_made_again_once(channels: Any) -> None:
    seen: list[Peer] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            seen.append(peer)
            if always or peer is server.peers[0]:
                peer.transport.write(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))  # GOAWAY: the last one was 0
            else:
                peer.answer(event.stream, b"again")

    always = False
    async with Scripted(script) as server:
        channel = channels(server.address)
        assert await unary(channel)(b"x") == b"again"
        assert len(seen) == 2
        always = True
        assert await status_of(unary(channel)(b"y")) is grpc.StatusCode.UNAVAILABLE
        assert len(seen) == 4, "once more, and not for ever"


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_refused_stream_is_made_again_once(channels: Any, kind: str) -> None:
    streams: list[int] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            streams.append(event.stream.id)
            if len(streams) < refused:
                peer.h2.reset(event.stream, ErrorCode.REFUSED_STREAM)
            else:
                peer.answer(event.stream)

    async with Scripted(script) as server:
        channel = channels(server.address)

        def call() -> Any:
            return unary(channel)(b"x") if kind == "unary" else channel.stream_unary(f"/{SERVICE}/Collect")()

        refused = 2
        assert await call() == b"answer"
        assert len(streams) == 2
        streams.clear()
        refused = 3
        assert await status_of(call()) is grpc.StatusCode.UNAVAILABLE
        assert len(streams) == 2


async def test_what_was_written_is_not_sent_twice(channels: Any) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, http2.DataReceived):
            peer.h2.reset(event.stream, ErrorCode.REFUSED_STREAM)

    async with Scripted(script) as server:
        call = channels(server.address).stream_stream(f"/{SERVICE}/Chat")()
        await call.write(b"x")
        assert await status_of(call.read()) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.CANCEL, grpc.StatusCode.CANCELLED),
        (ErrorCode.INTERNAL_ERROR, grpc.StatusCode.INTERNAL),
        (ErrorCode.ENHANCE_YOUR_CALM, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ErrorCode.NO_ERROR, grpc.StatusCode.INTERNAL),
    ],
)
async def test_a_reset_becomes_a_status(channels: Any, code: ErrorCode, status: grpc.StatusCode) -> None:
    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            peer.h2.reset(event.stream, code)

    async with Scripted(script) as server:
        assert await status_of(unary(channels(server.address))(b"x")) is status


async def test_more_calls_than_streams_wait_in_order(channels: Any) -> None:
    held: list[Any] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            held.append((event.stream, event.data))

    async with Scripted(script, http2.Limits(concurrent_streams=2)) as server:
        channel = channels(server.address, options=(("nebula.max_waiting_calls", 3),))
        await ready(channel)
        calls = [unary(channel)(b"%d" % number) for number in range(5)]
        assert await status_of(unary(channel)(b"too many")) is grpc.StatusCode.RESOURCE_EXHAUSTED
        calls[3].cancel()
        for number in (0, 1, 2, 4):
            await until(lambda: held)
            stream, data = held.pop(0)
            assert data == frame(b"%d" % number)
            server.peers[0].answer(stream, data)
            server.peers[0].flush()
        await asyncio.gather(*calls, return_exceptions=True)
        assert [call.cancelled() for call in calls] == [False, False, False, True, False]


async def test_too_many_calls_without_a_connection(channels: Any) -> None:
    channel = channels(free_address(), options=(("nebula.max_waiting_calls", 2),))
    calls = [unary(channel)(b"x", wait_for_ready=True) for _ in range(2)]
    assert await status_of(unary(channel)(b"x", wait_for_ready=True)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


# --- bad servers -----------------------------------------------------------------------------------------------------


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


# --- several endpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_first_endpoint_that_answers_is_picked(channels: Any, servers: Servers, engine: str) -> None:
    echoes = Echo(), Echo()
    addresses = [(await servers.start(engine, echo))[1] for echo in echoes]
    channel = channels(f"ipv4:{free_address()},{addresses[0]},{addresses[1]}")
    for _ in range(4):
        await unary(channel)(b"x")
    assert [echo.calls for echo in echoes] == [4, 0]


async def test_round_robin(channels: Any, servers: Servers) -> None:
    echoes = Echo(), Echo()
    started = [await servers.start("nebula", echo) for echo in echoes]
    target = "ipv4:" + ",".join([*(address for _, address in started), free_address()])
    channel = channels(target, options=(("grpc.lb_policy_name", "round_robin"),))
    await ready(channel)
    await until(lambda: len(channel._core._ready) == 2)
    for _ in range(6):
        await unary(channel)(b"x")
    assert [echo.calls for echo in echoes] == [3, 3]
    await servers.stop(started[0][0])
    await until(lambda: len(channel._core._ready) == 1)
    for _ in range(2):
        await unary(channel)(b"x")
    assert [echo.calls for echo in echoes] == [3, 5]
    await servers.start("nebula", echoes[0], started[0][1])
    await until(lambda: len(channel._core._ready) == 2)


async def test_round_robin_follows_its_name(channels: Any, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "RESOLVE_SECONDS", 0.0)
    echoes = Echo(), Echo()
    started = [await servers.start("nebula", echo) for echo in echoes]
    names = [int(address.rpartition(":")[2]) for _, address in started]
    listed = names[:1]

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", ("127.0.0.1", port)) for port in listed]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    channel = channels("dns:///some.name:1", options=(("grpc.lb_policy_name", "round_robin"),))
    await unary(channel)(b"x")
    listed = names[1:]
    await servers.stop(started[0][0])
    assert await unary(channel)(b"x", wait_for_ready=True, timeout=SECONDS) == b"x"
    assert [echo.calls for echo in echoes] == [1, 1]
    assert len(channel._core._subchannels) == 1


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_socket_in_the_file_system(channels: Any, servers: Servers, engine: str, tmp_path: Any) -> None:
    if engine == "nebula":
        pytest.skip("our server listens at TCP ports")
    address = f"unix:{tmp_path}/socket"
    await servers.start(engine, Echo(), address)
    assert await unary(channels(address))(b"x") == b"x"


# --- the channel's end -----------------------------------------------------------------------------------------------


async def test_close_cancels_what_runs(channels: Any, servers: Servers) -> None:
    echo = Echo()
    _, address = await servers.start("nebula", echo)
    channel = channels(address)
    call, queued = unary(channel)(b"wait"), unary(channels(free_address()))(b"x", wait_for_ready=True)
    stream = channel.stream_stream(f"/{SERVICE}/Chat")()
    await stream.write(b"x")
    await asyncio.wait_for(echo.started.wait(), SECONDS)
    await channel.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    while True:
        try:
            await stream.read()
        except asyncio.CancelledError:
            break
    await asyncio.wait_for(echo.cancelled.wait(), SECONDS)
    queued.cancel()
    await channel.close()


async def test_close_with_grace_lets_calls_end(channels: Any, servers: Servers) -> None:
    echo = Echo()
    _, address = await servers.start("nebula", echo)
    channel = channels(address)
    call = unary(channel)(b"wait")
    await asyncio.wait_for(echo.started.wait(), SECONDS)
    closing = asyncio.create_task(channel.close(SECONDS))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.UsageError):
        unary(channel)(b"late")
    echo.release.set()
    assert await asyncio.wait_for(call, SECONDS) == b"wait"
    await asyncio.wait_for(closing, SECONDS)


async def test_a_channel_that_nobody_holds_closes(servers: Servers) -> None:
    async with Scripted() as server:
        channel = rpc.insecure_channel(server.address)
        assert await unary(channel)(b"x") == b"x"
        del channel
        await until(lambda: server.peers[0].lost)


def test_a_loop_that_is_closed_first() -> None:
    """Nothing is raised, warned of or left when what is left of a channel is collected after its loop."""

    async def leave() -> Any:
        async with Scripted() as server:
            channel = rpc.insecure_channel(server.address)
            await unary(channel)(b"x")
            stream = channel.stream_stream(f"/{SERVICE}/Chat")()
            await stream.write(b"x")
            channel._core.shut()
            await asyncio.sleep(0)
            return channel, stream

    left = asyncio.run(leave())
    with pytest.raises(grpc.aio.UsageError):
        unary(left[0])(b"x")
    del left

"""Connections: made, lost, made again, refused, retired; what each means for calls."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.rpc import http2
from nebuladb.rpc.channel import connection as connection_module
from nebuladb.rpc.channel.subchannel import Subchannel
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import ErrorCode, HeadersReceived
from tests.integration.proxy import Proxy
from tests.unit.rpc.channel.echo import (
    ENGINES,
    SECONDS,
    SERVICE,
    Echo,
    Servers,
    State,
    free_address,
    ready,
    status_of,
    unary,
    until,
)
from tests.unit.rpc.channel.scripted import HEADERS, Peer, Scripted


async def test_states(channels: Any) -> None:
    channel = channels(free_address())
    assert channel.get_state() is State.IDLE
    assert channel.get_state(try_to_connect=True) is State.IDLE
    assert channel.get_state() is State.CONNECTING
    await asyncio.wait_for(channel.wait_for_state_change(State.CONNECTING), SECONDS)
    assert channel.get_state() is State.TRANSIENT_FAILURE
    # It tries again by itself; that may have failed by the time we look.
    await asyncio.wait_for(channel.wait_for_state_change(State.TRANSIENT_FAILURE), SECONDS)
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


def holding(held: list[Any]) -> Callable[[Peer, Any], None]:
    """A server that answers nothing by itself: streams gather in `held`, with what came of them."""

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            held.append((event.stream, event.data))

    return script


async def test_more_calls_than_streams_wait_in_order(channels: Any) -> None:
    held: list[Any] = []
    async with Scripted(holding(held), http2.Limits(concurrent_streams=2)) as server:
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


async def test_who_waits_for_a_stream_is_not_overtaken(channels: Any) -> None:
    held: list[Any] = []
    async with Scripted(holding(held), http2.Limits(concurrent_streams=1)) as server:
        channel = channels(server.address)
        await ready(channel)
        calls = [unary(channel)(b"%d" % number) for number in range(8)]
        for number in range(8):
            await until(lambda: held)
            stream, data = held.pop(0)
            assert data == frame(b"%d" % number)
            server.peers[0].answer(stream, data)
            server.peers[0].flush()
        await asyncio.wait_for(asyncio.gather(*calls), SECONDS)


async def test_a_stream_that_is_taken_back_makes_room_whether_or_not_the_server_says_something(channels: Any) -> None:
    begun: list[Any] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            begun.append(event.data)

    async with Scripted(script, http2.Limits(concurrent_streams=1)) as server:
        channel = channels(server.address)
        await ready(channel)
        calls = [unary(channel)(b"%d" % number) for number in range(3)]
        for number, call in enumerate(calls):
            await until(lambda: bool(begun))
            assert begun.pop() == frame(b"%d" % number)
            call.cancel()


async def test_a_stream_for_which_too_much_waits_makes_room_as_well(channels: Any) -> None:
    begun: list[Any] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            begun.append(event.data)

    async with Scripted(script, http2.Limits(concurrent_streams=1, stream_window=1_000)) as server:
        channel = channels(server.address)
        await ready(channel)
        (connection,) = channel._core._ready
        connection.http2.limits = dataclasses.replace(connection.http2.limits, waiting_bytes=10_000)
        chat = channel.stream_stream(f"/{SERVICE}/Chat")()
        await chat.wait_for_connection()
        await until(lambda: bool(begun))
        waits = unary(channel)(b"waits")
        chat.direct.put_bytes(bytes(20_000))
        await until(lambda: begun == [None, frame(b"waits")])
        waits.cancel()


async def test_too_many_calls_without_a_connection(channels: Any) -> None:
    channel = channels(free_address(), options=(("nebula.max_waiting_calls", 2),))
    calls = [unary(channel)(b"x", wait_for_ready=True) for _ in range(2)]
    assert await status_of(unary(channel)(b"x", wait_for_ready=True)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("kind", ["unary", "stream"])
@pytest.mark.parametrize("late", [False, True], ids=["", "a write was due"])
async def test_calls_that_never_left_a_dead_connection_are_made_on_the_next(
    channels: Any, kind: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop was busy while the server restarted: to it the connection still stands when the calls begin."""
    monkeypatch.setattr(connection_module, "QUIET_SECONDS", -1.0)
    seen: list[Peer] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            seen.append(peer)
            peer.answer(event.stream)

    async with Scripted(script) as server:
        channel = channels(server.address)
        await unary(channel)(b"x")
        (connection,) = channel._core._ready
        await until(lambda: not connection._scheduled)
        # Behind the loop's back, which would otherwise know.
        with socket.socket(fileno=os.dup(seen[0].transport.get_extra_info("socket").fileno())) as behind:
            behind.shutdown(socket.SHUT_RDWR)
        assert channel.get_state() is State.READY
        if late:
            connection._schedule()
        calls = [
            unary(channel)(b"x") if kind == "unary" else channel.stream_unary(f"/{SERVICE}/Collect")() for _ in range(3)
        ]
        assert [await asyncio.wait_for(call, SECONDS) for call in calls] == [b"answer"] * 3
        assert seen == [server.peers[0]] + [server.peers[1]] * 3


async def test_a_connection_whose_ids_are_used_up_is_closed_and_another_made(channels: Any, servers: Servers) -> None:
    """After 2^30 calls. One that had no call just then stayed open for as long as the channel."""
    server, address = await servers.start("nebula", Echo())
    channel = channels(address)
    await ready(channel)
    (connection,) = channel._core._ready
    connection.http2._next_id = http2.frames.MAX_STREAM_ID
    for _ in range(2):
        assert await unary(channel)(b"x") == b"x"
    assert channel._core._ready != [connection]
    assert connection.closed
    await until(lambda: len(server._connections) == 1)


async def test_a_connection_that_comes_as_its_time_is_over_is_kept(
    channels: Any, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop was busy for as long as an attempt may take, and found its end and the server's preface at once. The
    attempt was said to have failed, and when the next one came nobody knew of the first, which stayed open for ever."""
    limits: list[asyncio.Timeout] = []

    def timeout(seconds: float) -> asyncio.Timeout:
        limits.append(asyncio.Timeout(asyncio.get_running_loop().time() + seconds))
        return limits[-1]

    def settled(subchannel: Subchannel, connection: connection_module.Connection) -> None:
        settlings.append(connection)
        if len(settlings) == 1:
            limits[-1].reschedule(0)
        settle(subchannel, connection)

    settlings: list[connection_module.Connection] = []
    settle = Subchannel.settled
    monkeypatch.setattr(asyncio, "timeout", timeout)
    monkeypatch.setattr(Subchannel, "settled", settled)
    server, address = await servers.start("nebula", Echo())
    channel = channels(address)
    await ready(channel)
    assert await unary(channel)(b"x") == b"x"
    assert channel.get_state() is State.READY
    (subchannel,) = channel._core._subchannels.values()
    await asyncio.wait_for(subchannel._attempt, SECONDS)
    assert channel.get_state() is State.READY
    assert subchannel._retry is None
    assert [subchannel.connection] == settlings
    await until(lambda: len(server._connections) == 1)

"""Channels: several endpoints, and the end."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc
from nebuladb.rpc.channel import dispatcher
from nebuladb.rpc.channel.target import Endpoint, parse
from tests.unit.rpc.channel.echo import (
    ENGINES,
    SECONDS,
    SERVICE,
    Echo,
    Servers,
    State,
    free_address,
    ready,
    unary,
    until,
)
from tests.unit.rpc.channel.scripted import Scripted


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

    known = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host != "some.name":
            return known(host, port, *args, **kwargs)
        return [(0, 0, 0, "", ("127.0.0.1", port)) for port in listed]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
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


# --- the end ---------------------------------------------------------------------------------------------------------


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


async def closing_beside_a_call(channels: Any, servers: Servers) -> tuple[Any, Echo, Any, Any, asyncio.Task[None]]:
    """A server and its handler, a channel that closes with grace, its call that waits, and the close."""
    echo = Echo()
    server, address = await servers.start("nebula", echo)
    channel = channels(address)
    call = unary(channel)(b"wait")
    await asyncio.wait_for(echo.started.wait(), SECONDS)
    closing = asyncio.create_task(channel.close(SECONDS))
    await asyncio.sleep(0)
    return server, echo, channel, call, closing


async def test_a_close_that_is_cancelled_closes_at_once(channels: Any, servers: Servers) -> None:
    """Its calls and its connection stayed; nobody was left to end them."""
    server, _, channel, call, closing = await closing_beside_a_call(channels, servers)
    closing.cancel()
    await asyncio.wait((closing,))
    assert call.cancelled()
    assert channel.get_state() is State.SHUTDOWN
    await until(lambda: not server._connections)


async def test_close_with_grace_lets_calls_end(channels: Any, servers: Servers) -> None:
    _, echo, channel, call, closing = await closing_beside_a_call(channels, servers)
    with pytest.raises(grpc.aio.UsageError):
        unary(channel)(b"late")
    echo.release.set()
    assert await asyncio.wait_for(call, SECONDS) == b"wait"
    await asyncio.wait_for(closing, SECONDS)


async def test_a_call_keeps_its_channel() -> None:
    async with Scripted() as server:
        call = unary(rpc.insecure_channel(server.address))(b"x")
        gc.collect()
        assert await call == b"x"
        del call
        gc.collect()
        await until(lambda: server.peers[0].lost)


async def test_a_channel_that_nobody_holds_closes() -> None:
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


async def test_a_server_that_ends_the_handshake_of_tls_is_told_of() -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, rpc.secure_channel(address, rpc.ssl_channel_credentials()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(unary(channel)(b"x"), SECONDS)
    why = (caught.value.details() or "").rpartition(f"{address}: ")[2]
    assert why in ("the server ended the connection", "Connection reset by peer")


@pytest.mark.parametrize("name", ["n1..example", "n" * 64])
async def test_what_can_be_no_name_is_told_at_once(channels: Any, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(unary(channels(f"{name}:1"))(b"x"), SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"{name!r} is no name" in (caught.value.details() or "")


async def test_a_name_about_which_the_system_says_nothing_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread of its own: those of the loop are for others, whose work would wait as long."""
    asked: list[str] = []
    answer = threading.Event()

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(threading.current_thread().name)
        answer.wait()
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    target = parse("dns:///slow.name:1")
    for _ in range(50):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await target.resolve()
    waiting = asyncio.create_task(target.resolve())
    async with asyncio.timeout(SECONDS):
        assert await asyncio.to_thread(lambda: True)
        answer.set()
        assert await waiting == (Endpoint("127.0.0.1", 1),)
        assert asked == ["name slow.name"]
        assert await target.resolve() == (Endpoint("127.0.0.1", 1),)
    assert len(asked) == 2

"""Calls that are refused for want of room before any handler has seen them: their status says that nothing was done."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.client.errors import failure_of
from nebuladb.errors import Outcome, TooManyRequests
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.events import DataReceived, HeadersReceived
from nebuladb.rpc.http2.limits import Limits
from tests.unit.rpc.channel.echo import SECONDS, SERVICE, Echo, Servers, free_address, ready, status_of, unary, until
from tests.unit.rpc.channel.scripted import Peer, Scripted


def silent(peer: Peer, event: Any) -> None:
    """A script that answers nothing."""


async def refused(call: Any) -> str:
    """Its text, once it is known that a write would be taken for failed, and be tried again."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    failure = failure_of(caught.value, "n1", writes=True)
    assert isinstance(failure.error, TooManyRequests)
    assert failure.error.outcome is Outcome.FAILED
    assert failure.retryable
    return failure.error.message


async def test_for_the_number_of_calls_that_wait_for_a_connection(channels: Any) -> None:
    channel = channels(free_address(), options=(("nebula.max_waiting_calls", 1),))
    first = unary(channel)(b"x", wait_for_ready=True)
    assert "wait for a connection" in await refused(unary(channel)(b"x", wait_for_ready=True))
    first.cancel()


async def test_for_the_number_of_calls_that_wait_for_a_stream(channels: Any) -> None:
    async with Scripted(silent, Limits(concurrent_streams=1)) as server:
        channel = channels(server.address, options=(("nebula.max_waiting_calls", 1),))
        await ready(channel)
        calls = [unary(channel)(b"x") for _ in range(2)]
        assert "to allow more streams" in await refused(unary(channel)(b"x"))
        for call in calls:
            call.cancel()


async def test_for_what_waits_for_the_servers_window(channels: Any) -> None:
    async with Scripted(silent, Limits(stream_window=1_000)) as server:
        channel = channels(server.address)
        await ready(channel)
        (connection,) = channel._core._ready
        connection.http2.limits = dataclasses.replace(connection.http2.limits, waiting_bytes=10_000)
        first = unary(channel)(bytes(8_000))
        assert "too much waits" in await refused(unary(channel)(bytes(8_000)))
        first.cancel()
        stream = channel.stream_unary(f"/{SERVICE}/Collect")()
        await stream.write(bytes(100))
        await stream.write(bytes(20_000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = failure_of(caught.value, "n1", writes=True).error
        assert error.outcome is Outcome.UNKNOWN, "a handler may have the first message"


async def test_by_a_server_for_the_number_of_its_calls(channels: Any, servers: Servers) -> None:
    echo = Echo()
    _, address = await servers.start("nebula", echo, maximum_concurrent_rpcs=1)
    channel = channels(address)
    running = unary(channel)(b"wait")
    await asyncio.wait_for(echo.started.wait(), SECONDS)
    assert "try again later" in await refused(unary(channel)(b"x"))
    collect = channel.stream_unary(f"/{SERVICE}/Collect")
    assert "try again later" in await refused(collect(iter([b"x"])))
    assert echo.calls == 1
    echo.release.set()
    assert await running == b"wait"


async def test_a_stream_whose_messages_were_put_is_not_begun_again(channels: Any) -> None:
    """They are not kept: on the next connection it would stand without them."""
    begun: list[Peer] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            begun.append(peer)
        elif isinstance(event, DataReceived):
            peer.h2.reset(event.stream, ErrorCode.REFUSED_STREAM)

    async with Scripted(script) as server:
        channel = channels(server.address)
        call = channel.stream_stream(f"/{SERVICE}/Chat")()
        await call.wait_for_connection()
        await until(lambda: begun)
        call.direct.put_bytes(b"message")
        call.direct.connection.flush()
        assert await status_of(call.read()) is grpc.StatusCode.UNAVAILABLE
        assert len(begun) == 1

"""Calls whose messages are handed to a listener (`deliver_to`), until they are over and no longer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import ErrorCode, StreamReset
from nebuladb.rpc.http2 import frames as wire
from tests.unit.rpc.channel.conftest import World
from tests.unit.rpc.channel.echo import until
from tests.unit.rpc.serving.wired import Wired, chatting, serving

ours = pytest.mark.parametrize("world", [("nebula", "nebula")], indirect=True)


class Owner:
    """Who listens."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def hear(self, message: bytes) -> None:
        self.heard.append(message)


async def listening(world: World) -> tuple[Any, Owner]:
    """A call that stands, and who listens to it."""
    call, owner = world.chat(), Owner()
    await call.write(b"1")
    assert await call.read() == b"1"
    call.direct.deliver_to(owner.hear)
    await call.write(b"2")
    await until(lambda: owner.heard == [b"2"])
    return call, owner


@ours
async def test_a_connection_that_lives_on_keeps_nobody_who_listened(world: World) -> None:
    call, owner = await listening(world)
    call.cancel()
    await until(call.done)
    kept = weakref.ref(owner)
    del call, owner
    await asyncio.sleep(0)
    gc.collect()
    assert kept() is None


@ours
async def test_what_comes_after_the_end_is_nobodys(world: World) -> None:
    call, owner = await listening(world)
    connection, stream = call.direct.connection, call.direct.stream
    connection.eof_received()
    await until(call.done)
    connection.data_received(wire.frame(wire.DATA, 0, stream.id, frame(b"late")))
    assert owner.heard == [b"2"]


@ours
async def test_who_ends_its_call_is_told_nothing_more_of_the_same_read(world: World) -> None:
    call = world.chat()
    heard: list[bytes] = []
    await call.write(b"1")
    assert await call.read() == b"1"

    def hear(message: bytes) -> None:
        heard.append(message)
        call.cancel()

    call.direct.deliver_to(hear)
    connection, stream = call.direct.connection, call.direct.stream
    connection.data_received(wire.frame(wire.DATA, 0, stream.id, frame(b"2") + frame(b"3")))
    assert heard == [b"2"]
    await until(call.done)


@pytest.mark.parametrize("early", [True, False], ids=["before it is listened to", "while it is"])
async def test_a_servers_call_that_its_listener_ends_tells_it_nothing_more(*, early: bool) -> None:
    heard: list[bytes] = []
    ready = asyncio.Event()

    async def listen(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        def hear(message: bytes) -> None:
            heard.append(message)
            context.drop()

        await context.read()
        if early:
            await ready.wait()
        context.direct.deliver_to(hear)
        yield b"ready"
        await context.read()

    async with serving(ServerLimits(), {"Listen": chatting(listen)}) as server:
        wired = Wired(server)
        stream = wired.open("Listen")
        wired.client.send_data(stream, frame(b"1"))
        await wired.say()
        await until(lambda: early or bool(wired.wire.written))
        wired.client.send_data(stream, frame(b"2") + frame(b"3"))
        await wired.say()
        ready.set()
        await until(lambda: server.calls == 0)
        assert heard == [b"2"]
        wired.connection.http2.check()


async def test_a_message_that_is_not_what_it_says_ends_its_stream_alone() -> None:
    heard: list[bytes] = []

    async def listen(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.read()
        context.direct.deliver_to(heard.append)
        yield b"ready"
        await context.read()

    async with serving(ServerLimits(), {"Listen": chatting(listen)}) as server:
        wired = Wired(server)
        stream = wired.client.open((*wired.fields("Listen"), (b"grpc-encoding", b"gzip")))
        wired.client.send_data(stream, frame(b"1"))
        await wired.say()
        await until(lambda: bool(wired.wire.written))
        wired.client.send_data(stream, b"\1\0\0\0\3abc")
        await wired.say()
        await until(lambda: server.calls == 0)
        wired.read()
        assert [event.code for event in wired.events if isinstance(event, StreamReset)] == [ErrorCode.NO_ERROR]
        assert not heard
        assert not wired.wire.aborted
        assert not wired.connection.http2.closed

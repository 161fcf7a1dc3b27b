"""A connection whose peer reads slowly, or not at all: it is not taken for dead, and leaves no call behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.http2 import ErrorCode
from tests.unit.rpc.serving.wired import LATER, Wired, chatting, collecting, serving, unary, until

LIMITS: Final = ServerLimits(
    keepalive_seconds=10.0, keepalive_timeout=10.0, held_seconds=60.0, sweep_seconds=LATER, transport_bytes=100_000
)


async def large(request: bytes, context: Any) -> bytes:
    return bytes(200_000)


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([request async for request in requests])


async def echo(request: bytes, context: Any) -> bytes:
    return request


HANDLERS: Final = {"Large": unary(large), "Echo": unary(echo)}


async def test_a_call_that_was_reset_behind_a_backlog_ends_with_its_connection() -> None:
    ended = asyncio.Event()

    async def watch(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()
        yield b""

    async with serving(LIMITS, {**HANDLERS, "Watch": chatting(watch)}) as server:
        wired = Wired(server)
        stream = wired.open("Watch")
        await wired.say()
        await until(lambda: server.calls == 1)
        wired.call("Large")
        wired.client.reset(stream, ErrorCode.CANCEL)
        await wired.say()
        assert wired.connection.paused
        assert not wired.connection.http2.streams.get(stream.id), "its reset is here"
        assert not ended.is_set(), "and waits until the answer has left"
        wired.wire.lose()
        await until(ended.is_set)
        await until(lambda: server.calls == 0)


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "each with headers of its own"])
async def test_no_more_is_answered_than_a_peer_takes(alike: bool) -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        for number in range(20):
            wired.call("Large", more=() if alike else ((b"x-number", b"%d" % number),))
        await wired.say()
        answers = 0
        while wired.wire.written:
            assert len(wired.wire.written) < 500_000
            answers += 1
            wired.read()
            await until(lambda: wired.connection.paused or wired.connection._backlog is None)
        assert set(wired.statuses().values()) == {b"0"}
        assert len(wired.statuses()) == 20
        assert answers >= 10


async def test_a_slow_reader_is_neither_pinged_nor_given_up() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        wired.call("Large")
        await wired.say()
        assert wired.connection.paused
        since = time.monotonic()
        said = bytes(wired.wire.written)
        for seconds in range(1, 60):
            wired.connection.sweep(since + seconds)
        assert not wired.wire.aborted
        assert wired.wire.written == said
        wired.connection.sweep(since + LIMITS.held_seconds + 1)
        assert wired.wire.aborted, "this is its bound"


async def test_one_that_stopped_reading_behind_a_ping() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        since = time.monotonic()
        wired.connection.sweep(since + LIMITS.keepalive_seconds + 1)
        assert wired.connection._pinged
        wired.connection.pause_writing()  # and nothing is read from it, its answer neither
        wired.connection.sweep(since + 30.0)
        assert not wired.wire.aborted


async def test_one_that_reads_again_lives() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        wired.call("Large")
        await wired.say()
        assert wired.connection.paused
        wired.connection._active -= 1_000.0
        wired.connection._pinged = wired.connection._active
        wired.read()
        assert not wired.connection.paused
        now = time.monotonic()
        wired.connection.sweep(now)
        wired.connection.sweep(now + LIMITS.keepalive_seconds - 1)
        assert not wired.wire.written, "no ping yet"
        wired.connection.sweep(now + LIMITS.keepalive_seconds + 1)
        assert wired.wire.written
        wired.connection.sweep(now + LIMITS.keepalive_seconds + LIMITS.keepalive_timeout + 2)
        assert wired.wire.aborted, "silence is what it was"


async def test_data_behind_what_ended_its_call_in_the_same_read() -> None:
    async with serving(LIMITS, {**HANDLERS, "Collect": collecting(join)}) as server:
        wired = Wired(server)
        stream = wired.open("Collect")
        for _ in range(3):
            wired.client.send_data(stream, b"\0\x7f\xff\xff\xff" + bytes(1_000))
        wired.client.send_data(stream, b"", end=True)
        wired.call("Echo", b"x")
        await wired.say()
        wired.read()
        await until(lambda: server.calls == 0)
        assert wired.statuses() == {stream.id: b"8", stream.id + 2: b"0"}
        assert wired.connection.http2._unread == 0
        wired.connection.http2.check()

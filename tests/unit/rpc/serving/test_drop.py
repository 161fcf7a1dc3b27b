"""A stream that is given up for others: its bytes are free at once, and its client goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from nebuladb.rpc import ServerLimits, http2
from nebuladb.rpc.http2 import ErrorCode
from tests.unit.rpc.serving.wired import LATER, Wired, chatting, serving, until

LIMITS: Final = ServerLimits(held_seconds=LATER, sweep_seconds=LATER)


async def test_what_waits_for_the_peers_window_is_free_at_once_and_the_stream_is_reset() -> None:
    contexts: list[Any] = []
    ended = asyncio.Event()

    async def watch(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        contexts.append(context)
        try:
            yield bytes(20 << 20)
        finally:
            ended.set()

    async with serving(LIMITS, {"Watch": chatting(watch)}) as server:
        wired = Wired(server)
        stream = wired.open("Watch")
        await wired.say()
        await until(lambda: wired.connection.http2.waiting > 0)
        wired.read()
        assert not wired.connection.paused
        contexts[0].drop()
        assert wired.connection.http2.waiting == 0
        await until(ended.is_set)
        await until(lambda: server.calls == 0)
        contexts[0].drop()  # it is over
        wired.read()
        resets = [event for event in wired.events if isinstance(event, http2.StreamReset)]
        assert [(event.stream, event.code) for event in resets] == [(stream, ErrorCode.INTERNAL_ERROR)]
        assert not wired.wire.aborted
        wired.connection.http2.check()


async def test_where_the_transport_takes_nothing_either_its_connection_goes() -> None:
    contexts: list[Any] = []

    async def watch(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        contexts.append(context)
        yield bytes(2 << 20)

    async with serving(LIMITS, {"Watch": chatting(watch)}) as server:
        wired = Wired(server)
        wired.open("Watch")
        await wired.say()
        await until(lambda: wired.connection.paused)
        contexts[0].drop()
        assert wired.wire.aborted


async def test_what_a_call_past_its_deadline_was_sent_is_free_at_once() -> None:
    """Its handler has ended, and counts it no more; the status would wait behind it for a client that doesn't read."""

    async def watch(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield bytes(20 << 20)

    async with serving(LIMITS, {"Watch": chatting(watch)}) as server:
        wired = Wired(server)
        wired.client.open((*wired.fields("Watch"), (b"grpc-timeout", b"50m")))
        await wired.say()
        await until(lambda: wired.connection.http2.waiting > 0)
        await until(lambda: server.calls == 0)
        assert wired.connection.http2.waiting == 0
        wired.connection.http2.check()

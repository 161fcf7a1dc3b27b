"""Calls that are over before their handlers have returned, and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from nebuladb.rpc import ServerLimits, http2
from tests.unit.rpc.serving.wired import Wired, chatting, serving, unary, until

LITTLE = ServerLimits(http2=http2.Limits(waiting_bytes=1 << 20))
MUCH = bytes(20 << 20)
"""A message of which more waits for the window of `Wired` than may."""


async def test_an_answer_after_an_abort_goes_nowhere_and_costs_no_other_call_anything() -> None:
    async def swallow(request: bytes, context: Any) -> bytes:
        if request == b"abort":
            with contextlib.suppress(grpc.aio.AbortError):
                await context.abort(grpc.StatusCode.NOT_FOUND, "none")
        return request

    async with serving(ServerLimits(), {"Ask": unary(swallow)}) as server:
        wired = Wired(server)
        aborted, other = wired.call("Ask", b"abort"), wired.call("Ask", b"other")
        await wired.say()
        wired.read()
        await until(lambda: server.calls == 0)
        assert wired.statuses() == {aborted.id: b"5", other.id: b"0"}
        assert (server.headers, wired.wire.aborted) == (0, False)


async def test_a_call_of_which_too_much_waits_is_over_whether_or_not_its_client_says_something() -> None:
    async def watch(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield MUCH
        await asyncio.get_running_loop().create_future()

    async with serving(LITTLE, {"Watch": chatting(watch)}) as server:
        wired = Wired(server)
        wired.open("Watch")
        await wired.say()
        await until(lambda: server.calls == 0)
        assert server.headers == 0
        wired.connection.http2.check()


async def test_a_call_of_which_too_much_waited_ends_with_its_connection() -> None:
    """Its stream is none of the connection's any more, and nothing was sent since."""
    contexts: list[Any] = []

    async def watch(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        contexts.append(context)
        yield b"first"
        await asyncio.get_running_loop().create_future()

    async with serving(LITTLE, {"Watch": chatting(watch)}) as server:
        wired = Wired(server)
        wired.open("Watch")
        await wired.say()
        await until(lambda: bool(wired.wire.written))
        contexts[0].put_bytes(MUCH)
        wired.wire.lose()
        await until(lambda: server.calls == 0)
        assert server.headers == 0

"""Calls that are over before their handlers have returned, and what is left of them: nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc

from nebuladb.rpc import ServerLimits
from tests.unit.rpc.serving.wired import Wired, serving, unary, until


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

"""A call that waited leaves nothing to the collector, however it ended: a thousand timeouts a second are no leak."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any, Final

import pytest

from nebuladb.futures import PromptFuture
from nebuladb.rpc import ServerLimits
from nebuladb.rpc.http2 import ErrorCode
from tests.unit.rpc.serving.wired import LATER, Wired, serving, unary, until

CALLS: Final = 300


@pytest.mark.parametrize("end", ["answered", "reset", "deadline"])
@pytest.mark.parametrize("kind", [asyncio.Future, PromptFuture])
async def test_a_call_that_waited_is_gone_when_it_is_over(kind: Any, end: str) -> None:
    waiting: list[asyncio.Future[bytes]] = []

    async def wait(request: bytes, context: Any) -> bytes:
        waiting.append(kind())
        return await waiting[-1]

    async with serving(ServerLimits(sweep_seconds=LATER, keepalive_seconds=LATER), {"Wait": unary(wait)}) as server:
        wired = Wired(server)
        more = ((b"grpc-timeout", b"50m"),) if end == "deadline" else ()
        streams = [wired.call("Wait", more=more) for _ in range(CALLS)]
        await wired.say()
        gc.collect()
        gc.disable()
        try:
            if end == "answered":
                for future in waiting:
                    future.set_result(b"x")
            elif end == "reset":
                for stream in streams:
                    wired.client.reset(stream, ErrorCode.CANCEL)
                await wired.say()
            await until(lambda: server.calls == 0)
            wired.read()
            waiting.clear()
            streams.clear()
            wired.events.clear()
            for _ in range(3):
                await asyncio.sleep(0)
            alive = Counter(type(one).__name__ for one in gc.get_objects())
            assert alive["Call"] + alive["PromptFuture"] + alive["CancelledError"] < 20, alive.most_common(8)
        finally:
            gc.enable()

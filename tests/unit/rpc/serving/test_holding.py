"""Calls that wait for prompt futures, answered by one who says when their answers are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from nebuladb.futures import PromptFuture
from nebuladb.rpc import insecure_channel
from nebuladb.rpc.serving import server

METHOD = "nebula.test.Waits"
SECONDS = 10.0


class Wire:
    """A transport whose writes are counted."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_calls_answered_in_one_go_leave_in_one_write_at_its_end() -> None:
    loop = asyncio.get_running_loop()
    waiting: list[PromptFuture[bytes]] = []

    async def handler(request: bytes, context: Any) -> bytes:
        future: PromptFuture[bytes] = PromptFuture(loop=loop)
        waiting.append(future)
        return await future

    served: Any = server()
    served.add_registered_method_handlers(METHOD, {"Ask": grpc.unary_unary_rpc_method_handler(handler)})
    port = served.add_insecure_port("127.0.0.1:0")
    await served.start()
    seen: list[int] = []
    async with insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.unary_unary(f"/{METHOD}/Ask")
        for round_ in range(2):
            calls = [ask(b"%d" % number) for number in range(3)]
            await until(lambda: len(waiting) == 3)
            [connection] = served._connections
            wire = connection._transport = Wire(connection._transport)

            def answer(wire: Wire = wire) -> None:
                served.hold()
                for number, future in enumerate(waiting):
                    future.set_result(b"%d" % number)
                seen.append(wire.writes)
                served.flush()
                seen.append(wire.writes)
                waiting.clear()

            loop.call_soon(answer)
            assert await asyncio.gather(*calls) == [b"0", b"1", b"2"], round_
            assert wire.writes == 1
    assert seen == [0, 1] * 2
    await served.stop(None)

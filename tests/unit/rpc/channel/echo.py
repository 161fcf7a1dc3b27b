"""A servicer that does everything a call can ask for, on either engine, and channels of either."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc

SECONDS = 20.0
SERVICE = "test.Echo"
PAIRS = [("nebula", "nebula"), ("nebula", "grpcio"), ("grpcio", "grpcio")]
"""(client, server). The last one shows that a test asks for no more than grpc.aio gives."""
State = grpc.ChannelConnectivity
QUICK = (("grpc.initial_reconnect_backoff_ms", 10), ("grpc.max_reconnect_backoff_ms", 10))
ENGINES = ["nebula", "grpcio"]


class Echo:
    """Handlers of raw bytes, and what they saw."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.metadata: list[dict[str, Any]] = []
        self.remaining: list[float | None] = []
        self.received: list[bytes] = []
        self.calls = 0

    def _note(self, context: Any) -> None:
        self.calls += 1
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.remaining.append(context.time_remaining())

    async def unary(self, request: bytes, context: Any) -> bytes:
        self._note(context)
        if request == b"error":
            context.set_trailing_metadata((("why", "told"), ("grpc-status-details-bin", b"\0\1\xff")))
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing h\u00e9re: 100%\n")
        if request == b"metadata":
            await context.send_initial_metadata((("first", "1"), ("first-bin", b"\0\xff")))
            context.set_trailing_metadata((("last", "2"), ("last", "3"), ("last-bin", b"\xfe")))
        if request == b"wait":
            await self._wait()
        return request

    async def _wait(self) -> None:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def many(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self._note(context)
        count, _, then = request.partition(b" ")
        for number in range(int(count)):
            yield b"%d" % number
        if then == b"error":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "no more", (("why", "told"),))
        if then == b"wait":
            await self._wait()

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self._note(context)
        async for request in requests:
            self.received.append(request)
            if request == b"error":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not that one")
        return b",".join(self.received)

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self._note(context)
        async for request in requests:
            if request == b"enough":
                return
            if request == b"wait":
                await self._wait()
            yield request

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Many": grpc.unary_stream_rpc_method_handler(self.many),
                "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
                "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            },
        )


class Servers:
    """Starts servers of either engine and stops those that still run."""

    def __init__(self) -> None:
        self._running: list[Any] = []

    async def start(self, engine: str, echo: Echo, address: str = "127.0.0.1:0", **more: Any) -> tuple[Any, str]:
        """The server, and where it listens."""
        credentials = more.pop("credentials", None)
        # A port that is taken must fail, not be shared.
        more["options"] = (*more.get("options", ()), ("grpc.so_reuseport", 0))
        server: Any = rpc.server(**more) if engine == "nebula" else grpc.aio.server(**more)
        server.add_generic_rpc_handlers((echo.handler(),))
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        await server.start()
        self._running.append(server)
        return server, address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def stop(self, server: Any, grace: float | None = None) -> None:
        self._running.remove(server)
        await server.stop(grace)

    async def stop_all(self) -> None:
        for server in list(self._running):
            await self.stop(server)


def open_channel(engine: str, target: str, **more: Any) -> Any:
    return rpc.insecure_channel(target, **more) if engine == "nebula" else grpc.aio.insecure_channel(target, **more)


def idle(channel: Any) -> bool:
    """Whether nothing of any call is left on one of our channels. Always true of grpc's."""
    if not isinstance(channel, rpc.Channel):
        return True
    core = channel._core
    connections = [c for sub in core._subchannels.values() for c in sub.connections()]
    assert all(set(c.calls) == {s.owner for s in c.http2.streams.values()} for c in connections)
    timed = any(core.deadlines._slots.values())
    return not (core.live() or any(c.http2.streams or c._blocked for c in connections) or timed)


async def until(condition: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def unary(channel: Any) -> Any:
    return channel.unary_unary(f"/{SERVICE}/Unary")


async def status_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, SECONDS)
    return caught.value.code()


async def ready(channel: Any) -> None:
    await asyncio.wait_for(channel.channel_ready(), SECONDS)

"""Clients that break rules, come in crowds, or fall silent; and the server's end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nebuladb import rpc
from nebuladb.rpc import Server, ServerLimits
from nebuladb.rpc.http2 import ErrorCode, Limits
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.limits import Rate
from tests.rpc.meeting import LATER, closes, connection, met, passes
from tests.rpc.raw import RawClient
from tests.rpc.service import channel_to, path, serving


async def large(request: bytes, context: Any) -> bytes:
    await asyncio.sleep(0)
    return bytes(100_000)


class TestHostile:
    @pytest.mark.parametrize("first", [b"PRI * HTTP/2.0\r\n\r\nXM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 64])
    async def test_no_preface(self, first: bytes) -> None:
        async with serving() as (address, server):
            client = await RawClient.connect(address, hello=False)
            client.send(first)
            assert (await client.reader.read()).startswith((b"HTTP/1.1 400", b"HTTP/1.1 505"))
            await client.close()
            await passes(lambda: not server._connections)

    @pytest.mark.parametrize("sent", [b"", b"PRI", wire.PREFACE])
    async def test_a_preface_that_does_not_come(self, sent: bytes) -> None:
        limits = ServerLimits(sweep_seconds=LATER)
        async with serving(limits=limits) as (address, server):
            client = await RawClient.connect(address, hello=False)
            client.send(sent)
            await passes(lambda: server._connections)
            server.sweep(time.monotonic() + limits.http2.preface_seconds - 1)
            assert server._connections
            if sent == wire.PREFACE:
                await client.read()
            server.sweep(time.monotonic() + limits.http2.preface_seconds + 1)
            await client.ended()
            await passes(lambda: not server._connections)
            await client.close()

    async def test_a_protocol_error_ends_its_connection_and_nothing_else(self) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()

        async def wait(request: bytes, context: Any) -> bytes:
            try:
                await loop.create_future()
            finally:
                ended.set_result(context.cancelled())
            return b""

        async with serving({"Wait": ("unary_unary", wait)}) as (address, server):
            client, other = await RawClient.connect(address), await RawClient.connect(address)
            client.call(1, "Wait", b"")
            await passes(lambda: server.calls == 1)
            client.frame(wire.DATA, 0, 77, b"on an idle stream")
            assert await closes(client) is ErrorCode.PROTOCOL_ERROR
            assert await asyncio.wait_for(ended, 5)
            other.call(1, "Echo", b"x")
            assert await other.end_of(1) == {"grpc-status": "0"}
            await client.close()
            await other.close()
            await passes(lambda: server.calls == 0 and not server._connections)

    async def test_one_that_is_lost_as_it_is_answered_takes_no_answer_with_it(self) -> None:
        """Its transport refuses the write; the others of that turn are written all the same."""
        release = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            await release.wait()
            if request == b"lose":
                context.connection.abort()
            return b""

        async with serving({"Wait": ("unary_unary", wait)}) as (address, server):
            lost, other = await RawClient.connect(address), await RawClient.connect(address)
            lost.call(1, "Wait", b"lose")
            await passes(lambda: server.calls == 1)
            other.call(1, "Wait", b"")
            await passes(lambda: server.calls == 2)
            release.set()
            assert await other.end_of(1) == {"grpc-status": "0"}
            await passes(lambda: server.calls == 0 and len(server._connections) == 1)
            await lost.close()
            await other.close()

    async def test_rapid_resets(self) -> None:
        """CVE-2023-44487: each reset frees a place among streams while its handler may still run."""
        started = 0

        async def stubborn(request: bytes, context: Any) -> bytes:
            nonlocal started
            started += 1
            await asyncio.shield(release)
            return b""

        release = asyncio.get_running_loop().create_future()
        limits = ServerLimits(calls=20, http2=Limits(resets=Rate(100, 0)))
        async with met({"Stubborn": ("unary_unary", stubborn)}, limits=limits) as (client, server):
            for number in range(1, 401, 2):
                client.call(number, "Stubborn", b"")
                client.frame(wire.RST_STREAM, 0, number, bytes(4))
            assert await closes(client) is ErrorCode.ENHANCE_YOUR_CALM
            assert started <= 101
            assert server.calls <= 20
            release.set_result(None)
            await passes(lambda: server.calls == 0)

    async def test_calls_that_never_end_their_requests_take_nobodys_place(self) -> None:
        async with met(maximum_concurrent_rpcs=5) as (client, server):
            for number in range(1, 101, 2):
                client.request(number, "Echo")
            client.call(101, "Echo", b"x")
            assert await client.end_of(101) == {"grpc-status": "0"}
            assert server.calls == 0
            client.body(1, b"late")
            assert await client.end_of(1) == {"grpc-status": "0"}

    async def test_requests_that_do_not_come_whole_are_bounded_by_their_bytes(self) -> None:
        limits = ServerLimits(unfinished_bytes=50_000)
        async with met(limits=limits) as (client, server):
            for number in range(1, 61, 2):
                client.request(number, "Echo")
                client.frame(wire.DATA, 0, number, b"\0" + (4_000).to_bytes(4, "big") + bytes(3_000))
            await client.until(lambda got: got.kind == wire.HEADERS and got.stream == 59)
            assert {headers["grpc-status"] for _, headers in client.headers} == {"8"}
            assert len(client.headers) + len(connection(server).http2.streams) == 30
            assert len(client.headers) >= 14, "each takes 3,000 bytes and those of its headers"
            for number in range(3, 61, 2):
                client.frame(wire.RST_STREAM, 0, number, bytes(4))
            client.frame(wire.DATA, wire.END_STREAM, 1, bytes(1_000))
            assert await client.end_of(1) == {"grpc-status": "0"}
            client.call(101, "Echo", b"x")
            assert await client.end_of(101) == {"grpc-status": "0"}
            assert connection(server).unfinished == 0

    async def test_an_answer_that_waits_for_its_window_keeps_no_call(self) -> None:
        async with met({"Large": ("unary_unary", large)}) as (client, server):
            client.call(1, "Echo", b"x")
            await client.end_of(1)
            client.call(3, "Large", b"", replace={"x": "y" * 8_000})
            await passes(lambda: connection(server).http2.waiting)
            (stream,) = connection(server).http2.streams.values()
            assert stream.owner is None
            client.window(0, 1 << 20)
            client.window(3, 1 << 20)
            assert await client.end_of(3) == {"grpc-status": "0"}
            assert server.calls == 0

    async def test_silence_is_pinged_and_then_given_up(self) -> None:
        limits = ServerLimits(sweep_seconds=LATER)
        async with met(limits=limits) as (client, server):
            client.call(1, "Echo", b"x")
            await client.end_of(1)
            server.sweep(time.monotonic() + limits.keepalive_seconds + 1)
            ping = await client.until(lambda got: got.kind == wire.PING)
            client.frame(wire.PING, wire.ACK, 0, ping.payload)
            client.call(3, "Echo", b"x")
            await client.end_of(3)
            server.sweep(time.monotonic() + limits.keepalive_seconds + 1)
            await client.until(lambda got: got.kind == wire.PING)
            server.sweep(time.monotonic() + limits.keepalive_seconds + limits.keepalive_timeout + 2)
            await client.ended()

    async def test_idle_connections_are_closed(self) -> None:
        limits = ServerLimits(sweep_seconds=LATER)
        async with met(limits=limits) as (client, server):
            client.call(1, "Echo", b"x")
            await client.end_of(1)
            server.sweep(time.monotonic() + limits.http2.idle_seconds + 1)
            assert await closes(client) is ErrorCode.NO_ERROR

    async def test_too_many_connections(self) -> None:
        async with serving(limits=ServerLimits(connections=3)) as (address, server):
            clients = [await RawClient.connect(address) for _ in range(3)]
            await passes(lambda: len(server._connections) == 3)
            fourth = await RawClient.connect(address)
            await fourth.ended()
            await clients[0].close()
            await passes(lambda: len(server._connections) == 2)
            fifth = await RawClient.connect(address)
            fifth.call(1, "Echo", b"x")
            assert await fifth.end_of(1) == {"grpc-status": "0"}
            for client in (*clients[1:], fourth, fifth):
                await client.close()

    async def test_too_many_connections_from_one_address(self) -> None:
        async with serving(limits=ServerLimits(connections_per_address=1)) as (address, server):
            first, second = await RawClient.connect(address), await RawClient.connect(address)
            await second.ended()
            await first.close()
            await passes(lambda: not server._connections)
            assert not server._addresses
            await second.close()

    async def test_too_many_descriptors(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Those that are left are the process's own, for its files: a log that can't be opened stops a node."""
        used = max(map(int, os.listdir("/proc/self/fd"))) + 20
        monkeypatch.setattr("resource.getrlimit", lambda _: (used + 100, used + 100))
        monkeypatch.setattr("nebuladb.rpc.serving.lifecycle.AMPLE_DESCRIPTORS", 1)
        async with serving(limits=ServerLimits(descriptors_left=100)) as (address, server):
            clients = []
            while not caplog.records:
                clients.append(await RawClient.connect(address))
                clients[-1].call(1, "Echo", b"x")
                await asyncio.sleep(0)
            await clients[-1].ended()
            assert max(map(int, os.listdir("/proc/self/fd"))) < used + 20
            clients += [await RawClient.connect(address) for _ in range(3)]
            for client in clients[-3:]:
                await client.ended()
            assert len(caplog.records) == 1, "it says so once"
            assert "raise the limit of open files" in caplog.text
            for client in clients:
                await client.close()
            await passes(lambda: not server._connections)
            last = await RawClient.connect(address)
            last.call(1, "Echo", b"x")
            assert await last.end_of(1) == {"grpc-status": "0"}
            await last.close()


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[RawClient, Server, asyncio.Future[bytes]]]:
    """Call 1 waits for the future's result."""
    release: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def wait(request: bytes, context: Any) -> bytes:
        return await asyncio.shield(release)

    async with met({"Wait": ("unary_unary", wait)}) as (client, server):
        client.call(1, "Wait", b"")
        await passes(lambda: server.calls == 1)
        yield client, server, release


class TestStop:
    async def test_calls_in_progress_may_end(self) -> None:
        async with waiting() as (client, server, release):
            stopping = asyncio.ensure_future(server.stop(30))
            assert await client.goaway() == ErrorCode.NO_ERROR
            ping = await client.until(lambda got: got.kind == wire.PING)
            client.frame(wire.PING, wire.ACK, 0, ping.payload)
            last = await client.until(lambda got: got.kind == wire.GOAWAY)
            assert int.from_bytes(last.payload[:4], "big") == 1
            release.set_result(b"in time")
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert client.data[1][5:] == b"in time"
            await client.ended()
            await client.close()
            await asyncio.wait_for(stopping, 5)
            assert not await server.wait_for_termination(1)

    @pytest.mark.parametrize("grace", [None, 0.05])
    async def test_what_does_not_end_is_cut(self, grace: float | None) -> None:
        cancelled: list[bool] = []

        async def wait(request: bytes, context: Any) -> bytes:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.append(True)
            return b""

        async with met({"Wait": ("unary_unary", wait)}) as (client, server):
            client.call(1, "Wait", b"")
            await passes(lambda: server.calls == 1)
            assert await server.wait_for_termination(0.001)
            stopping = asyncio.ensure_future(server.stop(grace))
            assert (await client.end_of(1))["grpc-status"] == "14"
            await client.ended()
            await client.close()
            await asyncio.wait_for(stopping, 5)
            assert cancelled == [True]
            assert server.calls == 0

    async def test_it_stops_though_who_asked_waits_no_more(self) -> None:
        async with waiting() as (client, server, release):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.stop(30), 0.001)
            release.set_result(b"")
            assert await client.end_of(1) == {"grpc-status": "0"}
            await client.close()
            assert not await server.wait_for_termination(5)

    async def test_no_connection_is_taken_any_more(self) -> None:
        async with serving() as (address, server):
            async with channel_to(address) as channel:
                assert await channel.unary_unary(path("Echo"))(b"x") == b"x"
            await server.stop(1)
            with pytest.raises(ConnectionError):
                await RawClient.connect(address)

    async def test_a_port_in_use(self) -> None:
        async with serving() as (address, _):
            with pytest.raises(RuntimeError, match="can't listen"):
                rpc.server().add_insecure_port(address)

"""Clients that are slow, odd or hostile, frame by frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nebuladb import rpc
from nebuladb.rpc.http2 import ErrorCode, Limits
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.limits import Rate
from nebuladb.rpc.http2.settings import INITIAL_WINDOW_SIZE
from nebuladb.rpc.serving import Server, ServerLimits
from tests.rpc.raw import RawClient
from tests.rpc.service import channel_to, path, serving

LATER = 1e6
"""Seconds: longer than any limit."""


@asynccontextmanager
async def met(
    more: dict[str, Any] | None = None, *, settings: dict[int, int] | None = None, **options: Any
) -> AsyncIterator[tuple[RawClient, Server]]:
    """A server, and a raw client of it."""
    async with serving(more, **options) as (address, server):
        client = await RawClient.connect(address, settings=settings)
        try:
            yield client, server
        finally:
            await client.close()


async def closes(client: RawClient) -> ErrorCode:
    """How the server ends the connection."""
    code = await client.goaway()
    await client.ended()
    return ErrorCode(code)


async def passes(condition: Any) -> None:
    """Turn the loop until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0.001)


def connection(server: Server) -> Any:
    """The server's side of the one that there is."""
    (one,) = server._connections
    return one


class TestRequests:
    async def test_a_call(self) -> None:
        async with met() as (client, _):
            client.call(1, "Echo", b"hello")
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert client.headers[0][1]["content-type"] == "application/grpc"
            assert bytes(client.data[1]) == b"\0\0\0\0\5hello"

    async def test_in_single_bytes(self) -> None:
        async with met() as (client, _):
            await client.writer.drain()
            sent: list[bytes] = []
            client.send = sent.append  # type: ignore[method-assign,assignment]
            client.call(1, "EchoLater", b"hello")
            for byte in b"".join(sent):
                client.writer.write(bytes((byte,)))
                await asyncio.sleep(0)
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert bytes(client.data[1]) == b"\0\0\0\0\5hello"

    @pytest.mark.parametrize("method", ["Echo", "EchoLater", "Total"])
    async def test_a_message_in_many_frames(self, method: str) -> None:
        async with met() as (client, server):
            client.request(1, method)
            for part in (b"\0", b"\0\0\0\5h", b"el", b"lo"):
                client.frame(wire.DATA, 0, 1, part)
                await client.writer.drain()
                await asyncio.sleep(0)
            client.frame(wire.DATA, wire.END_STREAM, 1)
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert bytes(client.data[1][5:]) == (b"5" if method == "Total" else b"hello")
            await passes(lambda: server.calls == 0)

    @pytest.mark.parametrize("method", ["Echo", "Count"])
    @pytest.mark.parametrize("body", [b"", b"\0\0\0\0\5hi", b"\0\0\0\0\1a\0\0\0\0\1b", b"\7\0\0\0\0", b"\1\0\0\0\0"])
    async def test_a_body_that_is_not_one_message(self, method: str, body: bytes) -> None:
        async with met() as (client, server):
            client.request(1, method)
            client.frame(wire.DATA, wire.END_STREAM, 1, body)
            client.request(3, method)
            for byte in body:
                client.frame(wire.DATA, 0, 3, bytes((byte,)))
            client.frame(wire.DATA, wire.END_STREAM, 3)
            for stream in (1, 3):
                assert (await client.end_of(stream))["grpc-status"] == "13"
            assert server.calls == 0

    async def test_headers_that_are_no_grpc_request(self) -> None:
        cases: list[tuple[dict[str, str | None], dict[str, str]]] = [
            ({":method": "GET"}, {":status": "405"}),
            ({"content-type": "application/json"}, {":status": "415"}),
            ({"content-type": None}, {":status": "415"}),
            ({"content-type": "application/grpcx"}, {":status": "415"}),
            ({"content-type": "application/grpc+proto"}, {"grpc-status": "0"}),
            ({"te": None}, {"grpc-status": "0"}),
            ({"grpc-timeout": "soon"}, {"grpc-status": "13"}),
            ({"x-bin": "no base64!"}, {"grpc-status": "13"}),
            ({"grpc-encoding": "snappy"}, {"grpc-status": "12", "grpc-accept-encoding": "identity,deflate,gzip,zstd"}),
            ({":path": "/nobody/knows"}, {"grpc-status": "12"}),
        ]
        async with met() as (client, server):
            for stream, (replace, expected) in enumerate(cases):
                number = 2 * stream + 1
                client.request(number, "Echo", replace=replace)
                if ":status" not in expected and expected["grpc-status"] == "0":
                    client.body(number, b"")
                last = await client.end_of(number)
                assert expected.items() <= last.items()
            assert server.calls == 0

    async def test_a_refused_request_may_go_on_sending(self) -> None:
        async with met() as (client, _):
            client.request(1, "Nothing")
            assert (await client.end_of(1))["grpc-status"] == "12"
            reset = await client.until(lambda got: got.kind == wire.RST_STREAM)
            assert int.from_bytes(reset.payload, "big") == ErrorCode.NO_ERROR
            client.body(1, b"on its way")
            client.call(3, "Echo", b"fine")
            assert await client.end_of(3) == {"grpc-status": "0"}

    async def test_zstd(self) -> None:
        async def packed(request: bytes, context: Any) -> bytes:
            context.set_compression("zstd")
            return request

        import zstandard

        async with met({"Packed": ("unary_unary", packed)}) as (client, _):
            raw = zstandard.compress(b"text " * 1000)
            client.request(1, "Packed", replace={"grpc-encoding": "zstd", "grpc-accept-encoding": "identity, zstd"})
            client.frame(wire.DATA, wire.END_STREAM, 1, b"\1" + len(raw).to_bytes(4, "big") + raw)
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert client.headers[0][1]["grpc-encoding"] == "zstd"
            assert zstandard.decompress(bytes(client.data[1][5:])) == b"text " * 1000
            client.call(3, "Packed", b"plain " * 1000)  # who doesn't say that it takes zstd gets none
            await client.end_of(3)
            assert client.data[3][5:] == b"plain " * 1000


class TestFlow:
    async def test_a_mebibyte_through_a_window_of_one_byte(self) -> None:
        """Byte for byte; and what the server holds is what has not left yet."""
        size = 1 << 20
        expected = bytes(range(256)) * (size // 256)

        async def large(request: bytes, context: Any) -> bytes:
            return expected

        async with met({"Large": ("unary_unary", large)}, settings={INITIAL_WINDOW_SIZE: 1}) as (client, server):
            client.call(1, "Large", b"")
            client.window(0, size)
            got, granted = client.data.setdefault(1, bytearray()), 1
            while True:
                while len(got) < granted:
                    frame = await client.read()
                    assert frame.kind != wire.DATA or granted > 2_000 or len(frame.payload) == 1
                left = size + 5 - granted
                assert connection(server).http2.waiting == left
                if not left:
                    break
                # A window of one for two thousand round trips. A million would take minutes; so then many grants of
                # one are on their way at once, and the last and larger part comes in grants that grow.
                grant = 1 if granted < 20_000 else min(granted // 20_000, left)
                many = 1 if granted < 2_000 else min(1_000, left // grant)
                client.send(wire.window_update_frame(1, grant) * many)
                granted += grant * many
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert got[5:] == expected
            assert server.calls == 0

    async def test_a_stream_waits_for_the_window(self) -> None:
        produced: list[int] = []

        async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
            while True:
                produced.append(1)
                yield bytes(1000)

        limits = ServerLimits(stream_bytes=10_000, turn_bytes=5_000)
        more = {"Endless": ("unary_stream", endless)}
        async with met(more, settings={INITIAL_WINDOW_SIZE: 2_000}, limits=limits) as (client, server):
            client.call(1, "Endless", b"")
            client.call(3, "Echo", b"x")
            await client.end_of(3)
            before = 0
            for stream in range(5, 85, 2):  # turns enough for a handler that doesn't wait
                client.call(stream, "Echo", b"x")
                await client.end_of(stream)
                if stream == 43:
                    before = len(produced)
            assert 10 <= before == len(produced) <= 20
            client.window(1, 100_000)
            await passes(lambda: len(produced) > before + 50)
            client.frame(wire.RST_STREAM, 0, 1, bytes(4))
            await passes(lambda: server.calls == 0)

    async def test_requests_that_nobody_reads_keep_their_window(self) -> None:
        release = asyncio.Event()

        async def late(requests: Any, context: Any) -> bytes:
            await release.wait()
            return b"%d" % sum([len(request) async for request in requests])

        limits = ServerLimits(http2=Limits(stream_window=65_535))
        async with met({"Late": ("stream_unary", late)}, limits=limits) as (client, _):
            client.request(1, "Late")
            part = bytes(13_102)
            for _ in range(5):  # 65,535 bytes with their prefixes: just the window
                client.body(1, part, end=False)
            client.call(3, "Echo", b"x")
            await client.end_of(3)
            release.set()
            await client.until(lambda got: got.kind == wire.WINDOW_UPDATE and got.stream == 1)
            client.body(1, part)
            assert await client.end_of(1) == {"grpc-status": "0"}
            assert client.data[1][5:] == b"%d" % (6 * len(part))

    async def test_more_than_the_window_is_refused(self) -> None:
        async def late(requests: Any, context: Any) -> bytes:
            await asyncio.get_running_loop().create_future()
            return b""

        limits = ServerLimits(http2=Limits(stream_window=65_535))
        async with met({"Late": ("stream_unary", late)}, limits=limits) as (client, server):
            client.send(wire.settings_frame({}))
            client.request(1, "Late")
            for _ in range(6):
                client.body(1, bytes(13_102), end=False)
            reset = await client.until(lambda got: got.kind in (wire.RST_STREAM, wire.GOAWAY))
            assert int.from_bytes(reset.payload[-4:], "big") == ErrorCode.FLOW_CONTROL_ERROR
            await passes(lambda: server.calls == 0)

    async def test_a_peer_that_does_not_read(self) -> None:
        """The transport fills up, reading stops, other connections don't notice, and time ends it."""

        async def large(request: bytes, context: Any) -> bytes:
            return bytes(1 << 20)

        limits = ServerLimits(transport_bytes=1 << 16, sweep_seconds=LATER)
        more = {"Large": ("unary_unary", large)}
        huge = {INITIAL_WINDOW_SIZE: (1 << 31) - 1}
        async with met(more, settings=huge, limits=limits) as (client, server):
            client.window(0, (1 << 31) - 1 - 65_535)
            transport = client.writer.transport
            transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(200):
                client.call(2 * number + 1, "Large", b"")
            await passes(lambda: any(getattr(one, "paused", False) for one in server._connections))
            connection: Any
            (connection,) = server._connections
            asked = connection.http2._last_in
            other = await RawClient.connect(f"127.0.0.1:{client.writer.get_extra_info('peername')[1]}")
            other.call(1, "Echo", b"x")
            assert await other.end_of(1) == {"grpc-status": "0"}
            await other.close()
            assert connection.paused
            assert connection.http2._last_in == asked
            server.sweep(time.monotonic() + limits.held_seconds + 1)
            await passes(lambda: connection not in server._connections)

    async def test_a_window_that_never_opens(self) -> None:
        async def large(request: bytes, context: Any) -> bytes:
            return bytes(100_000)

        limits = ServerLimits(sweep_seconds=LATER)
        more = {"Large": ("unary_unary", large)}
        async with met(more, settings={INITIAL_WINDOW_SIZE: 100}, limits=limits) as (client, server):
            client.call(1, "Large", b"")
            await client.until(lambda got: got.kind == wire.DATA)
            connection: Any
            (connection,) = server._connections
            now = time.monotonic()
            server.sweep(now + limits.held_seconds - 1)
            assert connection.http2.streams
            client.window(1, 1)  # one byte is no progress
            await client.until(lambda got: got.kind == wire.DATA)
            server.sweep(now + limits.held_seconds + 1)
            reset = await client.until(lambda got: got.kind == wire.RST_STREAM)
            assert int.from_bytes(reset.payload, "big") == ErrorCode.CANCEL
            assert not connection.http2.streams
            assert not connection.http2.waiting

    async def test_ten_thousand_streams_at_once(self) -> None:
        release = asyncio.get_running_loop().create_future()

        async def wait(request: bytes, context: Any) -> bytes:
            await asyncio.shield(release)
            return request

        limits = ServerLimits(calls=10_000, http2=Limits(concurrent_streams=10_000))
        async with met({"Wait": ("unary_unary", wait)}, limits=limits) as (client, server):
            client.window(0, 1 << 24)
            numbers = range(1, 20_001, 2)
            for number in numbers:
                client.call(number, "Wait", b"%d" % number)
            await passes(lambda: server.calls == 10_000)
            client.call(20_001, "Echo", b"one too many")
            await client.until(lambda got: got.stream == 20_001)
            release.set_result(None)
            for _ in numbers:
                await client.until(lambda got: got.kind == wire.HEADERS and bool(got.flags & wire.END_STREAM))
            assert all(client.data[number][5:] == b"%d" % number for number in numbers)
            assert server.calls == 0


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


class TestStop:
    async def test_calls_in_progress_may_end(self) -> None:
        release = asyncio.get_running_loop().create_future()

        async def wait(request: bytes, context: Any) -> bytes:
            return await asyncio.shield(release)

        async with met({"Wait": ("unary_unary", wait)}) as (client, server):
            client.call(1, "Wait", b"")
            await passes(lambda: server.calls == 1)
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

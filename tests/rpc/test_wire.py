"""Clients that are slow or odd, frame by frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.http2 import ErrorCode, Limits
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.settings import INITIAL_WINDOW_SIZE
from tests.rpc.meeting import LATER, connection, met, passes
from tests.rpc.raw import RawClient


def send_twice(client: RawClient, method: str, body: bytes) -> tuple[int, int]:
    """In one frame, and in one a byte; the streams."""
    client.request(1, method)
    client.frame(wire.DATA, wire.END_STREAM, 1, body)
    client.request(3, method)
    for byte in body:
        client.frame(wire.DATA, 0, 3, bytes((byte,)))
    client.frame(wire.DATA, wire.END_STREAM, 3)
    return 1, 3


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
    @pytest.mark.parametrize("body", [b"\0\0\0\0\1a\0\0\0\0\1b", b"\7\0\0\0\0", b"\1\0\0\0\0"])
    async def test_a_body_that_is_not_one_message(self, method: str, body: bytes) -> None:
        async with met() as (client, server):
            for stream in send_twice(client, method, body):
                assert (await client.end_of(stream))["grpc-status"] == "13"
            assert server.calls == 0

    @pytest.mark.parametrize(
        ("method", "body", "status", "text"),
        [
            ("Echo", b"", "2", "EOF"),
            ("Echo", b"\0\0", "2", "unexpected EOF"),
            ("Echo", b"\0\0\0\0\5hi", "2", "unexpected EOF"),
            ("Count", b"", "2", "EOF"),
            ("Count", b"\0\0\0\0\5hi", "13", "unexpected EOF"),
            ("Total", b"\0\0\0\0\1a\0", "13", "unexpected EOF"),
            ("Chat", b"\0\0\0\0\5hi", "13", "unexpected EOF"),
        ],
    )
    async def test_a_body_that_ends_early_is_told_as_go_does(
        self, method: str, body: bytes, status: str, text: str
    ) -> None:
        async with met() as (client, server):
            for stream in send_twice(client, method, body):
                end = await client.end_of(stream)
                assert (end["grpc-status"], end["grpc-message"]) == (status, text)
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
            ({"grpc-timeout": "0S"}, {"grpc-status": "4"}),
            ({"grpc-encoding": ""}, {"grpc-status": "0"}),
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

    async def test_a_read_full_of_requests_for_large_answers(self) -> None:
        """A peer with a huge window asks for 300 MiB in a few KiB: no more is made than it takes, and all arrives."""
        made = 0

        async def large(request: bytes, context: Any) -> bytes:
            nonlocal made
            made += 1
            return bytes(1 << 20)

        huge = {INITIAL_WINDOW_SIZE: (1 << 31) - 1}
        async with met({"Large": ("unary_unary", large)}, settings=huge) as (client, server):
            client.window(0, (1 << 31) - 1 - 65_535)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(300):
                client.call(2 * number + 1, "Large", b"")
            await passes(lambda: any(getattr(one, "paused", False) for one in server._connections))
            other = await RawClient.connect(f"127.0.0.1:{client.writer.get_extra_info('peername')[1]}")
            other.call(1, "Echo", b"x")
            assert await other.end_of(1) == {"grpc-status": "0"}
            await other.close()
            assert made < 30
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for number in range(300):
                if len(client.data.get(2 * number + 1, b"")) < (1 << 20) + 5:
                    await client.end_of(2 * number + 1)
                assert len(client.data.pop(2 * number + 1)) == (1 << 20) + 5
            assert made == 300
            assert not connection(server).paused

    async def test_answers_that_nobody_reads_are_bounded(self) -> None:
        release = asyncio.get_running_loop().create_future()

        async def later(request: bytes, context: Any) -> bytes:
            await asyncio.shield(release)
            return bytes(1 << 20)

        limits = ServerLimits(unread_total=8 << 20)
        huge = {INITIAL_WINDOW_SIZE: (1 << 31) - 1}
        async with met({"Later": ("unary_unary", later)}, settings=huge, limits=limits) as (client, server):
            client.window(0, (1 << 31) - 1 - 65_535)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(100):
                client.call(2 * number + 1, "Later", b"")
            await passes(lambda: server.calls == 100)
            release.set_result(None)
            await passes(lambda: server.calls == 0)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(100):
                await client.until(lambda got: got.kind == wire.HEADERS and got.flags & 1 == 1)
            ends = [headers["grpc-status"] for _, headers in client.headers if "grpc-status" in headers]
            assert ends.count("14") + ends.count("0") == 100
            assert ends.count("0") == len(client.data) <= 30

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
            assert int.from_bytes(reset.payload, "big") == ErrorCode.INTERNAL_ERROR
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

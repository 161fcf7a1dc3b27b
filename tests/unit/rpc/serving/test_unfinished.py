"""Requests that don't come whole: what they may hold of a connection, of the server, and for how long."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
import pytest

from nebuladb.client.errors import failure_of
from nebuladb.errors import Outcome, TooManyRequests
from nebuladb.rpc import ServerLimits
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import ErrorCode, StreamReset
from nebuladb.rpc.http2.stream import Stream
from nebuladb.rpc.metadata import decode_metadata
from nebuladb.rpc.serving.outgoing import UNFINISHED_BYTES
from nebuladb.rpc.status import decode_message
from tests.unit.rpc.serving.wired import LATER, Wired, collecting, serving, unary, until

LIMITS: Final = ServerLimits(sweep_seconds=LATER, keepalive_seconds=LATER)
PART: Final = 3_000
WHOLE: Final = frame(bytes(4_000))
LARGE: Final = frame(bytes(20_000))


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([request async for request in requests])


HANDLERS: Final = {"Echo": unary(echo), "Join": collecting(join)}


async def begun(wired: Wired, whole: bytes = WHOLE, method: str = "Echo") -> Stream:
    """A call whose request has come in part."""
    stream = wired.open(method)
    wired.client.send_data(stream, whole[:PART])
    await wired.say()
    wired.read()
    return stream


async def finished(wired: Wired, stream: Stream, rest: bytes = WHOLE[PART:]) -> None:
    """The rest of it comes, and it is answered."""
    wired.client.send_data(stream, rest, end=True)
    await wired.say()
    wired.read()
    assert wired.statuses()[stream.id] == b"0"


def refused(wired: Wired, stream: Stream) -> str:
    """It was ended with a status by which a client knows that nothing was done: its text."""
    assert wired.statuses()[stream.id] == b"8"
    fields = wired.ends()[stream.id]
    text = decode_message(dict(fields)[b"grpc-message"])
    status = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), decode_metadata(fields), details=text
    )
    failure = failure_of(status, "n1", writes=True)
    assert isinstance(failure.error, TooManyRequests)
    assert failure.error.outcome is Outcome.FAILED
    assert failure.retryable
    codes = [event.code for event in wired.events if isinstance(event, StreamReset) and event.stream is stream]
    assert codes == [ErrorCode.NO_ERROR], "the rest of the request is not wanted"
    return text


async def test_one_connection_has_a_bound() -> None:
    async with serving(dataclasses.replace(LIMITS, unfinished_bytes=10_000), HANDLERS) as server:
        one, other = Wired(server), Wired(server)
        first, second, third = [await begun(one) for _ in range(3)]
        assert "of this connection" in refused(one, third)
        elsewhere = await begun(other)
        for wired, stream in ((one, first), (one, second), (other, elsewhere)):
            await finished(wired, stream)
        assert (one.connection.unfinished, other.connection.unfinished, server.unfinished) == (0, 0, 0)


async def test_all_connections_together_have_one() -> None:
    async with serving(dataclasses.replace(LIMITS, unfinished_total=10_000), HANDLERS) as server:
        many = [Wired(server) for _ in range(3)]
        first, second, third = [await begun(wired) for wired in many]
        assert "of all clients" in refused(many[2], third)
        assert server.unfinished == sum(wired.connection.unfinished for wired in many) > 2 * PART
        many[0].client.reset(first, ErrorCode.CANCEL)
        await many[0].say()
        await finished(many[2], await begun(many[2]))
        await finished(many[1], second)
        assert server.unfinished == 0


async def test_what_came_of_a_connection_that_is_lost_counts_no_more() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        lost, other = Wired(server), Wired(server)
        for _ in range(5):
            await begun(lost)
        stream = await begun(other)
        lost.wire.lose()
        assert server.unfinished == other.connection.unfinished
        await finished(other, stream)
        assert server.unfinished == 0


async def test_headers_alone_count_with_what_they_cost() -> None:
    async with serving(dataclasses.replace(LIMITS, unfinished_bytes=100_000), HANDLERS) as server:
        wired = Wired(server)
        streams = [wired.open("Echo") for _ in range(200)]
        await wired.say()
        wired.read()
        assert 50 < 200 - len(wired.statuses()) < 100
        assert refused(wired, streams[-1])
        wired.client.send_data(streams[0], WHOLE, end=True)
        await wired.say()
        wired.read()
        assert wired.statuses()[streams[0].id] == b"0"


async def test_one_that_makes_no_progress_is_given_up() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        stuck, slow = await begun(wired, LARGE), await begun(wired, LARGE)
        since = time.monotonic()
        server.sweep(since + LIMITS.held_seconds - 1)
        assert not wired.statuses()
        wired.client.send_data(stuck, LARGE[PART : PART + 1])  # one byte is no progress
        wired.client.send_data(slow, LARGE[PART : PART + LIMITS.held_progress])
        await wired.say()
        server.sweep(since + LIMITS.held_seconds + 1)
        await until(lambda: len(wired.wire.written) > 0)
        wired.read()
        assert refused(wired, stuck) == "for 60 s its rest, or room for its answer, did not come; send it again"
        assert len(wired.statuses()) == 1
        server.sweep(since + 2 * LIMITS.held_seconds)
        assert len(wired.statuses()) == 1, "that one has begun anew"
        await finished(wired, slow, LARGE[PART + LIMITS.held_progress :])
        assert server.unfinished == 0
        assert not wired.connection._gathering


async def test_one_whose_connection_is_paused_can_make_none() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        stream = await begun(wired)
        since = time.monotonic()
        wired.connection.pause_writing()
        for seconds in range(1, 60):
            server.sweep(since + seconds)
        wired.connection.resume_writing()
        server.sweep(since + LIMITS.held_seconds + 1)
        await finished(wired, stream)


async def test_a_streams_message_counts_until_it_is_whole() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        stream = await begun(wired, method="Join")
        assert server.unfinished == PART + UNFINISHED_BYTES
        wired.client.send_data(stream, WHOLE[PART:] + WHOLE[:10])
        await wired.say()
        assert server.unfinished == 10 + UNFINISHED_BYTES, "the beginning of the next one, however soon that is taken"
        wired.client.send_data(stream, WHOLE[10:])
        await wired.say()
        assert server.unfinished == 0
        wired.client.send_data(stream, frame(b"x") * 3, end=True)
        await wired.say()
        await until(lambda: bool(wired.read()) and stream.id in wired.statuses())
        assert wired.statuses()[stream.id] == b"0"
        assert (server.unfinished, server.calls) == (0, 0)


@pytest.mark.parametrize("early", [True, False], ids=["with its headers", "later"])
async def test_a_stream_that_goes_over_it_ends(early: bool) -> None:
    cancelled: list[bool] = []

    async def slow(requests: AsyncIterator[bytes], context: Any) -> bytes:
        try:
            return await join(requests, context)
        finally:
            cancelled.append(True)

    limits = dataclasses.replace(LIMITS, unfinished_total=10_000)
    async with serving(limits, {**HANDLERS, "Join": collecting(slow)}) as server:
        wired = Wired(server)
        streams = [await begun(wired, method="Join") for _ in range(2)]
        last = wired.open("Join")
        if not early:
            await wired.say()
        wired.client.send_data(last, WHOLE[:PART])
        await wired.say()
        wired.read()
        assert wired.statuses() == {last.id: b"8"}
        assert all(key != "nebula-error-bin" for key, _ in decode_metadata(wired.ends()[last.id])), "it had begun"
        await until(lambda: server.calls == 2)
        assert cancelled == [True]
        for stream in streams:
            wired.client.send_data(stream, WHOLE[PART:], end=True)
        await wired.say()
        await until(lambda: server.calls == 0)
        assert server.unfinished == 0


async def test_a_streams_message_that_does_not_come_is_given_up_once() -> None:
    cancelled = 0

    async def stubborn(requests: AsyncIterator[bytes], context: Any) -> bytes:
        nonlocal cancelled
        while True:
            try:
                async for _ in requests:
                    pass
                return b""
            except asyncio.CancelledError:
                cancelled += 1
                await release.wait()

    release = asyncio.Event()
    async with serving(LIMITS, {"Join": collecting(stubborn)}) as server:
        wired = Wired(server)
        stream = await begun(wired, method="Join")
        idle = wired.open("Join")
        await wired.say()
        since = time.monotonic()
        for seconds in range(1, 5):
            server.sweep(since + LIMITS.held_seconds + seconds)
            await until(lambda: cancelled == 1)
        wired.read()
        assert wired.statuses() == {stream.id: b"8"}, "one that sends nothing may wait as long as it likes"
        assert server.unfinished == 0
        release.set()
        await until(lambda: server.calls == 1)
        wired.client.send_data(idle, b"", end=True)
        await wired.say()
        await until(lambda: server.calls == 0)


async def test_one_whose_deadline_passes_first_is_ended_by_that() -> None:
    """As etcd does it. It held its place, and was answered UNAVAILABLE when the rest had come."""
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        stream = wired.client.open((*wired.fields("Echo"), (b"grpc-timeout", b"1m")))
        wired.client.send_data(stream, WHOLE[:PART])
        await wired.say()
        await until(lambda: len(wired.wire.written) > 0)
        wired.read()
        assert wired.statuses() == {stream.id: b"4"}
        assert (server.unfinished, server.calls) == (0, 0)


async def test_one_that_comes_in_time_leaves_no_timer() -> None:
    async with serving(LIMITS, HANDLERS) as server:
        wired = Wired(server)
        stream = wired.client.open((*wired.fields("Echo"), (b"grpc-timeout", b"1H")))
        await wired.say()
        call = wired.connection.http2.streams[stream.id].owner
        timer = call._timer
        await finished(wired, stream, WHOLE)
        assert timer.cancelled()

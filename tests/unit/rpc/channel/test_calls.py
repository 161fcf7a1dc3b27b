"""The four kinds of call, metadata, errors, deadlines, cancellation: the same on every pair of engines."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.unit.rpc.channel.conftest import World
from tests.unit.rpc.channel.echo import PAIRS, SECONDS, SERVICE, until

OK = grpc.StatusCode.OK


async def numbers(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"%d" % number


async def test_unary(world: World) -> None:
    call = world.unary(b"hello")
    assert await call == b"hello"
    assert await call == b"hello"  # as often as one likes
    assert (await call.code(), await call.details(), call.done(), call.cancelled()) == (OK, "", True, False)
    assert not call.cancel()
    assert isinstance(call, grpc.aio.UnaryUnaryCall)
    assert await world.unary(b"") == b""


async def test_many_calls_at_once_get_their_own_answers(world: World) -> None:
    requests = [b"%d" % number for number in range(300)]
    assert await asyncio.gather(*[world.unary(request) for request in requests]) == requests


async def test_an_answer_that_is_a_stream(world: World) -> None:
    call = world.many(b"3")
    assert [message async for message in call] == [b"0", b"1", b"2"]
    assert await call.code() is OK
    call = world.many(b"2")
    assert [await call.read() for _ in range(3)] == [b"0", b"1", grpc.aio.EOF]
    assert await call.read() is grpc.aio.EOF
    assert [message async for message in world.many(b"0")] == []


async def test_a_long_stream_is_whole_and_in_order(world: World) -> None:
    assert [message async for message in world.many(b"5000")] == [b"%d" % number for number in range(5000)]


async def test_a_request_that_is_a_stream(world: World) -> None:
    assert await world.collect(numbers(3)) == b"0,1,2"
    world.echo.received.clear()
    assert await world.collect(iter([b"a", b"b"])) == b"a,b"
    world.echo.received.clear()
    call = world.collect()
    await call.write(b"x")
    await call.write(b"y")
    await call.done_writing()
    await call.done_writing()
    assert await call == b"x,y"
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"z")


async def test_both_ways(world: World) -> None:
    call = world.chat()
    for number in range(5):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is OK
    assert [message async for message in world.chat(numbers(1000))] == [b"%d" % number for number in range(1000)]


async def test_the_server_may_end_a_request_stream(world: World) -> None:
    call = world.chat()
    await call.write(b"a")
    assert await call.read() == b"a"
    await call.write(b"enough")
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is OK
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"b")


async def test_an_iterator_that_never_ends_is_let_go_with_its_call(world: World) -> None:
    closed = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        try:
            yield b"enough"
            await asyncio.Event().wait()
        finally:
            closed.set()

    iterator = requests()
    assert [message async for message in world.chat(iterator)] == []
    if world.client == "nebula":
        await asyncio.wait_for(closed.wait(), SECONDS)


async def test_large_messages_both_ways(world: World) -> None:
    large = bytes(range(256)) * (1 << 14)
    assert len(large) == 4 << 20
    assert await world.unary(large) == large
    assert await world.collect(iter([large])) == large
    assert [message async for message in world.chat(iter([large, b"", large]))] == [large, b"", large]


async def test_styles_are_not_mixed(world: World) -> None:
    call = world.many(b"3")
    assert await call.read() == b"0"
    with pytest.raises(grpc.aio.UsageError):
        call.__aiter__()
    call.cancel()
    call = world.chat(numbers(1))
    with pytest.raises(grpc.aio.UsageError):
        await call.write(b"x")
    with pytest.raises(grpc.aio.UsageError):
        await call.done_writing()
    call.cancel()


async def test_metadata_both_ways(world: World) -> None:
    call = world.unary(b"metadata", metadata=(("key", "value"), ("key-bin", b"\0\1\2"), ("empty", "")))
    initial = await call.initial_metadata()
    assert (initial["first"], initial["first-bin"]) == ("1", b"\0\xff")
    assert await call == b"metadata"
    trailing = await call.trailing_metadata()
    assert (trailing.get_all("last"), trailing["last-bin"]) == (["2", "3"], b"\xfe")
    assert isinstance(trailing, grpc.aio.Metadata)
    seen = world.echo.metadata[0]
    assert (seen["key"], seen["key-bin"], seen["empty"]) == ("value", b"\0\1\2", "")
    assert seen["user-agent"].startswith("grpc-python")
    await world.unary(b"x", metadata=grpc.aio.Metadata(("other", "thing")))
    assert world.echo.metadata[1]["other"] == "thing"


async def test_what_is_given_out_is_the_callers_own(world: World) -> None:
    for _ in range(2):
        call = world.unary(b"metadata")
        await call
        for metadata in (await call.initial_metadata(), await call.trailing_metadata()):
            assert metadata.get("mine") is None
            metadata.add("mine", "x")


async def test_an_error_with_details(world: World) -> None:
    call = world.unary(b"error")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "nothing h\u00e9re: 100%\n")
    assert error.trailing_metadata()["why"] == "told"
    assert error.trailing_metadata()["grpc-status-details-bin"] == b"\0\1\xff"
    assert (await call.code(), await call.details()) == (error.code(), error.details())
    assert (await call.trailing_metadata())["why"] == "told"
    assert "NOT_FOUND" in repr(error)
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_an_error_comes_behind_the_messages(world: World) -> None:
    call = world.many(b"3 error")
    assert [await call.read() for _ in range(3)] == [b"0", b"1", b"2"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "no more")
    assert (await call.trailing_metadata())["why"] == "told"


async def test_an_error_while_the_request_is_written(world: World) -> None:
    call = world.collect(iter([b"error"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_serializers(world: World) -> None:
    method = world.channel.unary_unary(
        f"/{SERVICE}/Unary",
        request_serializer=lambda number: b"%d" % number,
        response_deserializer=int,
        _registered_method=True,
    )
    assert await method(42) == 42
    stream = world.channel.unary_stream(f"/{SERVICE}/Many", lambda number: b"%d" % number, int)
    assert [number async for number in stream(3)] == [0, 1, 2]


async def test_a_deadline(world: World) -> None:
    await world.unary(b"connects")
    call = world.unary(b"wait", timeout=1)
    assert 0 < call.time_remaining() <= 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, SECONDS)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < world.echo.remaining[1] <= 1.01  # type: ignore[operator]
    await asyncio.wait_for(world.echo.cancelled.wait(), SECONDS)
    assert world.unary(b"x").time_remaining() is None


async def test_a_deadline_ends_a_stream(world: World) -> None:
    call = world.many(b"0 wait", timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call.read(), SECONDS)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_deadline_in_the_past(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.unary(b"x", timeout=-1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_cancel_reaches_the_handler(world: World) -> None:
    call = world.unary(b"wait")
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    assert call.cancel()
    assert call.cancelled()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await call.details() == "Locally cancelled by application!"
    await asyncio.wait_for(world.echo.cancelled.wait(), SECONDS)


async def test_cancelling_who_awaits_cancels_the_call(world: World) -> None:
    call = world.unary(b"wait")

    async def waits() -> None:
        await call

    task = asyncio.create_task(waits())
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(world.echo.cancelled.wait(), SECONDS)
    assert call.cancelled()


async def test_cancelling_who_reads_cancels_the_stream(world: World) -> None:
    call = world.many(b"1 wait")
    assert await call.read() == b"0"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call.read(), 0.05)
    await asyncio.wait_for(world.echo.cancelled.wait(), SECONDS)
    with pytest.raises(asyncio.CancelledError):
        await call.read()


async def test_asking_for_the_code_cancels_nothing(world: World) -> None:
    call = world.unary(b"wait")
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    for question in (call.code, call.details, call.trailing_metadata, call.initial_metadata):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(question(), 0.01)
    assert not call.done()
    world.echo.release.set()
    assert await call == b"wait"


@pytest.mark.parametrize("kind", ["many", "chat"])
async def test_a_stream_that_nobody_holds_is_cancelled(world: World, kind: str) -> None:
    if world.client != "nebula":
        pytest.skip("grpc.aio's generator keeps its call")
    call = world.many(b"1 wait") if kind == "many" else world.chat()
    if kind == "chat":
        await call.write(b"wait")
    else:
        async for _ in call:
            break
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    del call
    gc.collect()
    await asyncio.wait_for(world.echo.cancelled.wait(), SECONDS)


async def test_a_unary_call_that_nobody_awaits_is_made_all_the_same(world: World) -> None:
    world.unary(b"wait")
    gc.collect()
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    world.echo.release.set()


async def test_done_callbacks(world: World) -> None:
    told: list[Any] = []
    calls = [world.unary(b"x"), world.unary(b"error"), world.many(b"2"), world.collect(numbers(2))]
    for call in calls:
        call.add_done_callback(told.append)
    await asyncio.gather(calls[0], calls[1], calls[3], return_exceptions=True)
    assert [message async for message in calls[2]] == [b"0", b"1"]
    await until(lambda: len(told) == 4)
    assert {id(call) for call in told} == {id(call) for call in calls}
    calls[0].add_done_callback(told.append)
    await until(lambda: len(told) == 5)


async def test_a_writer_waits_for_a_handler_that_does_not_read(world: World) -> None:
    if world.client != "nebula":
        pytest.skip("grpc.aio doesn't show who waits")
    call = world.chat()
    await call.write(b"wait")
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    written = 0

    async def writes() -> None:
        nonlocal written
        while True:
            await call.write(bytes(1 << 16))
            written += 1

    task = asyncio.create_task(writes())
    waiting = 0
    while waiting < 1000:
        await asyncio.sleep(0)
        assert not task.done()
        assert written < 300
        waiting = waiting + 1 if call._rpc._room is not None else 0
    world.echo.release.set()
    assert await call.read() == b"wait"
    for _ in range(written):
        assert len(await call.read()) == 1 << 16
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert call.cancelled()


@pytest.mark.parametrize("world", PAIRS[:2], ids="-".join, indirect=True)
async def test_room_that_came_before_somebody_asked_for_it_is_there(world: World) -> None:
    """Who puts and was told "no room" may come to ask when all has left: nobody would wake him then. (A link between
    nodes fell silent so, for ever, and with it every election.)"""
    call = world.chat()
    await call.write(b"wait")
    await world.echo.started.wait()
    sent = 1
    while not call.direct.put_bytes(bytes(1 << 16)):
        sent += 1
        assert sent < 300
        await asyncio.sleep(0)
    world.echo.release.set()
    for _ in range(sent + 1):
        assert await call.read() is not grpc.aio.EOF
    await until(lambda: not call.direct.stream.waiting)
    async with asyncio.timeout(SECONDS):
        await call.direct.room()
    call.cancel()

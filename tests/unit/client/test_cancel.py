"""What a caller cancels ends, and loses nothing but what was cancelled."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient, Event, Items
from nebuladb.client.transport import OPTIONS
from tests.unit.client.fake import Node, wait_until

SECONDS = 10.0


async def test_who_is_cancelled_as_it_leaves_a_keeper_ends(node: Node) -> None:
    went_on = False

    async def outer(client: AsyncClient, lease: int) -> None:
        nonlocal went_on
        task = asyncio.current_task()
        assert task is not None
        async with client.keep_alive(lease):
            asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.sleep(0)
        went_on = True

    async with AsyncClient([node.address]) as client:
        lease = (await client.grant_lease(10)).id
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(outer(client, lease))
    assert not went_on


def test_grpcio_is_told_as_well_how_long_a_ping_may_take() -> None:
    """It has two settings for it, of which the longer one rules: 60 s, if nobody says otherwise."""
    options = dict(OPTIONS)
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]


async def given_up(events: Items[Event], node: Node) -> None:
    """One waits for the next event, and is cancelled when the node has heard of the watch."""
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.to_thread(wait_until, lambda: node.count("Watch") == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_watch_that_is_waited_for_with_a_timeout_loses_nothing(node: Node) -> None:
    async with AsyncClient([node.address]) as client, asyncio.timeout(SECONDS):
        events = client.watch(b"k", start_revision=2)
        for _ in range(2):
            await given_up(events, node)
        for number in range(3):
            await client.put(b"k", b"%d" % number)
        assert [(await anext(events)).kv.value for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0)
        await client.put(b"k", b"3")
        assert (await asyncio.wait_for(anext(events), SECONDS)).kv.value == b"3"
        assert node.count("Watch") == 1


async def test_a_scan_that_is_waited_for_with_a_timeout_loses_nothing(node: Node) -> None:
    async with AsyncClient([node.address]) as client, asyncio.timeout(SECONDS):
        await client.batch({b"%d" % number: b"" for number in range(5)})
        rows = client.scan(page_size=2)
        with node.store.lock:  # nothing is answered
            waiting = asyncio.ensure_future(anext(rows))
            await asyncio.to_thread(wait_until, lambda: node.count("Scan") == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert [row.key async for row in rows] == [b"0", b"1", b"2", b"3", b"4"]
        assert node.count("Scan") == 1


async def test_an_error_that_came_while_nobody_waited_is_raised_later(node: Node) -> None:
    async with AsyncClient([node.address]) as client, asyncio.timeout(SECONDS):
        events = client.watch(b"k", start_revision=2)
        await given_up(events, node)
        await client.close()
        with pytest.raises(errors.ClientClosed):
            await anext(events)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


def waiting() -> set[asyncio.Task[object]]:
    """What waits for events, whoever waits for it."""
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "_more"}


async def test_a_watch_ends_with_the_task_that_watches(node: Node) -> None:
    async def follow(client: AsyncClient) -> None:
        async for _ in client.watch(b"k"):
            pass

    async with AsyncClient([node.address]) as client, asyncio.timeout(SECONDS):
        task = asyncio.create_task(follow(client))
        await asyncio.to_thread(wait_until, lambda: node.count("Watch") == 1)
        left = waiting()
        assert len(left) == 1
        task.cancel()
        await asyncio.wait((task,))
        del task
        await asyncio.wait(left)
        assert not waiting()


async def test_closing_a_watch_ends_who_waits_for_it(node: Node) -> None:
    async with AsyncClient([node.address]) as client, asyncio.timeout(SECONDS):
        events = client.watch(b"k")
        two = [asyncio.ensure_future(anext(events)) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: node.count("Watch") == 1)
        await events.aclose()
        found = await asyncio.gather(*two, return_exceptions=True)
        assert [type(error) for error in found] == [StopAsyncIteration] * 2
        assert [event async for event in events] == []
        assert not waiting()


async def test_two_may_wait_for_one_watch(node: Node) -> None:
    async with AsyncClient([node.address]) as client, asyncio.timeout(SECONDS):
        events = client.watch(b"k", start_revision=2)
        two = [asyncio.ensure_future(anext(events)) for _ in range(2)]
        for value in (b"0", b"1"):
            await client.put(b"k", value)
        assert {event.kv.value for event in await asyncio.gather(*two)} == {b"0", b"1"}


async def test_a_scan_that_has_ended_leaves_nothing_for_the_collector(node: Node) -> None:
    async with AsyncClient([node.address]) as client:
        rows = client.scan()
        gc.disable()
        try:
            assert [row async for row in rows] == []
            gone = weakref.ref(rows)
            del rows
            for _ in range(10):
                await asyncio.sleep(0)
            assert gone() is None
        finally:
            gc.enable()

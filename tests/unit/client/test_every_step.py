"""Whatever the step at which a caller is cancelled, its call ends, leaves nothing behind, and the client goes on."""

from __future__ import annotations

import asyncio
import gc
import itertools
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing, suppress
from typing import Any

import pytest

from nebuladb.client import AsyncClient
from nebuladb.client.many import MAX_IN_FLIGHT
from nebuladb.client.session import WINDOW
from nebuladb.errors import DeadlineExceeded
from nebuladb.pb.nebula.v1 import cluster_pb2
from tests.unit.client.fake import LOST, Fault, Node

SECONDS = 10.0
MOST_STEPS = 100
TURNS = 100
NUMBERS = itertools.count()


@types.coroutine
def cancelled_at(step: int, work: Coroutine[Any, Any, object], *, late: bool) -> Generator[Any, None, None]:
    """Run `work`, and have the task that does so cancelled when it waits for the `step`-th time; `late`: in the instant
    in which what it waits for has come."""
    task = asyncio.current_task()
    assert task is not None
    go_on: Callable[[Any], Any] = work.send
    given: list[Any] = [None]
    """What it gets next; taken out, since an error that this frame kept would keep the frame."""
    while True:
        try:
            waited = go_on(given.pop())
        except StopIteration:
            return
        step -= 1
        if not step:
            if not late:
                task.cancel()
            elif waited is None:
                asyncio.get_running_loop().call_soon(task.cancel)
            else:
                waited.add_done_callback(lambda _: task.cancel())
        try:
            given.append((yield waited))
            go_on = work.send
        except BaseException as error:
            given.append(error)
            go_on = work.throw


async def with_a_session(client: AsyncClient) -> None:
    async with client.session() as session:
        await session.put(b"a", b"1")
        await session.txn().put(b"b", b"1").commit()
        await asyncio.gather(*(session.put(b"%d" % number, b"") for number in range(WINDOW + 8)))


async def with_a_lease(client: AsyncClient) -> None:
    lease = (await client.grant_lease(10)).id
    async with client.keep_alive(lease) as keeper:
        await keeper.renew()
    await client.time_to_live(lease)
    await client.revoke_lease(lease)


async def with_a_lock(client: AsyncClient) -> None:
    name = b"%d" % next(NUMBERS)  # of one that is cancelled as it leaves the key may stay, for its TTL
    async with client.lock(name):
        with suppress(DeadlineExceeded):
            await client.lock(name, timeout=0.001).__aenter__()


async def with_a_watch(client: AsyncClient) -> None:
    async with aclosing(client.watch(b"w", start_revision=2)) as events:
        for _ in range(2):
            await anext(events)


async def with_a_watch_that_nobody_closes(client: AsyncClient) -> None:
    events = client.watch(b"w", start_revision=2)
    for _ in range(2):
        await anext(events)


async def with_a_scan(client: AsyncClient) -> None:
    assert [row async for row in client.scan(page_size=1)]


async def with_a_backup(client: AsyncClient) -> None:
    async for _ in client.snapshot(cluster_pb2.SnapshotRequest()):
        pass


CALLS: dict[str, Callable[[AsyncClient], Coroutine[Any, Any, object]]] = {
    "get": lambda client: client.get(b"w"),
    "get_many": lambda client: client.get_many([b"%d" % number for number in range(300)]),
    "put": lambda client: client.put(b"k", b"v"),
    "batch": lambda client: client.batch({b"%d" % number: bytes(10_000) for number in range(300)}),
    "scan": with_a_scan,
    "watch": with_a_watch,
    "watch, left open": with_a_watch_that_nobody_closes,
    "session": with_a_session,
    "lease": with_a_lease,
    "lock": with_a_lock,
    "snapshot": with_a_backup,
    "state_hash": lambda client: client.state_hash(2),
}


def under_way(client: AsyncClient) -> list[object]:
    """The calls whose streams are open."""
    channels: list[Any] = [link.channel for link in client._transport._links.values()]
    return [rpc for channel in channels for rpc in channel._core.live()]


async def nothing_is_left(client: AsyncClient, before: set[asyncio.Task[Any]]) -> bool:
    """Whether no other tasks than those of `before` go on, soon, and no call."""
    for turn in range(TURNS):
        if asyncio.all_tasks() <= before and not under_way(client):
            return True
        if turn == TURNS // 2:
            gc.collect()  # what nobody closed may be kept by the error that it was left by
        await asyncio.sleep(0)
    return False


async def all_steps(client: AsyncClient, call: Callable[[AsyncClient], Coroutine[Any, Any, object]], late: bool) -> int:
    """Cancel it at its first step, then at its second one, until it comes to its end; how many there are."""
    await client.get(b"w")
    before = asyncio.all_tasks()
    for step in range(1, MOST_STEPS):
        task = asyncio.ensure_future(cancelled_at(step, call(client), late=late))
        async with asyncio.timeout(SECONDS):
            await asyncio.wait((task,))
            ended = not task.cancelled()
            if ended:
                task.result()
            del task
            assert await nothing_is_left(client, before)
            assert await client.get(b"w") is not None
        assert client._many._in_flight._value == MAX_IN_FLIGHT
        if ended:
            return step
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("late", [False, True], ids=["as it waits", "as it has come"])
@pytest.mark.parametrize("broken", [False, True], ids=["", "broken"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_may_be_cancelled_at_any_step(node: Node, name: str, broken: bool, late: bool) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with AsyncClient([node.address]) as client:
        for _ in range(2):
            await client.put(b"w", b"v")
        call = CALLS[name]
        if broken:
            call = breaking(node, call)
        steps = await all_steps(client, call, late)
    gc.collect()
    assert steps >= 2, "it waited once at least"
    assert not complaints


def breaking(node: Node, call: Callable[[AsyncClient], Awaitable[object]]) -> Any:
    """Each of its first calls fails, and is made again."""

    async def broken(client: AsyncClient) -> None:
        node.faults[:] = [Fault(method, LOST) for method in ("Open", "Describe", "Scan", "KeepAlive", "Watch")]
        node.faults.append(Fault("WatchBreakAfterEvent", LOST))
        await call(client)

    return broken


@pytest.mark.parametrize("late", [False, True], ids=["as it waits", "as it has come"])
async def test_a_session_goes_on_after_any_of_its_writes_was_cancelled(node: Node, late: bool) -> None:
    async def crowd(client: AsyncClient) -> None:
        await asyncio.gather(*(session.put(b"%d" % number, b"") for number in range(WINDOW + 8)))

    async with AsyncClient([node.address]) as client, client.session() as session:
        await client.put(b"w", b"v")
        await all_steps(client, crowd, late)
        [window] = session._windows.values()
        assert window.lowest == window._next, "no number is in use for ever"

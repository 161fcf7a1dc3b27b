"""An asynchronous client where it doesn't belong: in another event loop, in a forked child."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient, Client
from nebuladb.client.many import MAX_IN_FLIGHT
from nebuladb.client.session import WINDOW
from tests.unit.client.fake import Node

SECONDS = 20.0


async def test_another_loop_is_told_and_may_not_close_the_client(node: Node) -> None:
    """It was told of a future that is attached to another loop, and its `close` ended what was under way in the right
    one."""
    client = AsyncClient([node.address])
    session = client.session()
    await session.put(b"k", b"v")
    rows, events = client.scan(), client.watch(b"k", start_revision=1)
    await anext(rows)
    await anext(events)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: client.put(b"k", b"elsewhere"),
        lambda: session.put(b"k", b"elsewhere"),
        lambda: client.get_many([b"k"]),
        lambda: anext(client.scan()),
        lambda: anext(events),
    ]

    async def elsewhere() -> None:
        for call in calls:
            with pytest.raises(errors.ClientClosed, match="event loop's; make one in each") as caught:
                await call()
            assert caught.value.outcome is errors.Outcome.FAILED
        await client.close()

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert node.store.executed == ["put"]
    await client.put(b"k", b"w")
    await client.close()
    with pytest.raises(errors.ClientClosed, match="make another"):
        await client.get(b"k")


def test_a_second_run_is_another_loop(node: Node) -> None:
    client = AsyncClient([node.address])
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.put(b"k", b"v"))
        with pytest.raises(errors.ClientClosed, match="event loop's"):
            second.run(client.put(b"k", b"w"))
        second.run(client.close())
        first.run(client.close())


async def test_another_loop_waits_for_nothing_of_the_right_one(node: Node) -> None:
    """It waited for an event, or for its turn, of which nobody told it."""
    client = AsyncClient([node.address])
    session = client.session()
    await client.get_many([b"k"])
    await session.put(b"k", b"v")
    events = client.watch(b"k", start_revision=3)
    event = asyncio.create_task(anext(events))
    (window,) = session._windows.values()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: session.put(b"k", b"elsewhere"),
        lambda: client.get_many([b"k"]),
        lambda: anext(events),
    ]

    async def elsewhere() -> None:
        for call in calls:
            with pytest.raises(errors.ClientClosed, match="event loop's; make one in each"):
                async with asyncio.timeout(SECONDS):
                    await call()
        await events.aclose()

    async with AsyncExitStack() as busy:
        for _ in range(WINDOW):
            await busy.enter_async_context(window.number())
        for _ in range(MAX_IN_FLIGHT):
            await busy.enter_async_context(client._many._in_flight)
        waiting = asyncio.create_task(client.get_many([b"k"]))
        for _ in range(10):
            await asyncio.sleep(0)
        assert events._next
        assert client._many._in_flight._waiters
        await asyncio.to_thread(asyncio.run, elsewhere())
    await waiting
    await session.put(b"k", b"w")
    assert (await event).kv.value == b"w"
    await client.close()


def test_a_watch_that_waited_in_a_run_that_is_over_says_so(node: Node) -> None:
    """The end of the first run was raised as the second one's own: `CancelledError`."""
    client = AsyncClient([node.address])
    events = client.watch(b"k")

    async def poll() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(events)

    async def end() -> None:
        """As `asyncio.run` ends what is left."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait(left)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(poll())
        first.run(end())
        with pytest.raises(errors.ClientClosed, match="event loop's"):
            second.run(poll())
        second.run(events.aclose())
        first.run(client.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_leaves_its_parents_connections_alone(node: Node) -> None:
    """Its `close` said goodbye to the nodes in the parent's name, and its requests went into the midst of the parent's.
    In a process without the node, whose grpcio begins threads in a child, which crash now and then."""
    script = """
import asyncio, os, sys, warnings
from nebuladb import errors
from nebuladb.client import AsyncClient, Client
warnings.simplefilter("ignore")

async def child(client, unused, events):
    for call in (lambda: client.put(b"k", b"child"), lambda: anext(client.scan()), lambda: anext(events)):
        try:
            await call()
            return 1
        except errors.ClientClosed as error:
            if "fork" not in error.message:
                return 2
    await client.close()
    return 0 if (await unused.get(b"k")).value == b"v" else 3

async def main():
    unused = AsyncClient([sys.argv[1]])
    async with AsyncClient([sys.argv[1]]) as client:
        await client.put(b"k", b"v")
        events = client.watch(b"k", start_revision=1)
        await anext(events)
        pid = os.fork()
        if not pid:
            code = 4
            try:
                code = asyncio.run(child(client, unused, events))
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        await client.put(b"k", b"w")
        print(os.waitstatus_to_exitcode(status), (await anext(events)).kv.value)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, node.address], capture_output=True, timeout=SECONDS, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0 b'w'\n"), done.stderr
    assert node.count("Watch") == 1, "the parent's went on"


async def test_what_would_send_a_client_to_another_process_is_told_to_make_one_there(node: Node) -> None:
    """As multiprocessing's "spawn" does with arguments: it spoke of a `_contextvars.Context`, or a `WeakSet`."""
    with Client([node.address]) as client, client.session() as session:
        async with AsyncClient([node.address]) as other:
            for one in (client, session, other, other.session(), other.keep_alive(1)):
                with pytest.raises(TypeError, match="make one there"):
                    pickle.dumps(one)

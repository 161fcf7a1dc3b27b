"""A watch's way over breaks: no event twice, none left out; and what a caller sees of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

from nebuladb.client.errors import Failure
from nebuladb.client.types import Event, event
from nebuladb.errors import Compacted, Unavailable
from nebuladb.pb.nebula.v1 import kv_pb2


class WatchPlan:
    """Where a watch has come in each shard. Pure.

    `request.start_revisions` are the next revisions that were not seen, so that the request as it stands continues the
    watch on any node. That is exact because a revision is told whole, and a response without events says how far its
    shard's part of the watch has come.
    """

    def __init__(self, request: kv_pb2.WatchRequest) -> None:
        request.progress = True  # so that an idle watch isn't overtaken by compaction
        self.request = request
        self._next = {pair.group: pair.revision for pair in request.start_revisions}
        self._fragments: dict[int, list[Event]] = {}

    def absorb(self, response: kv_pb2.WatchResponse) -> list[Event] | Failure:
        """A response's events, or why the server ended the watch. Raises `Compacted`: events were lost for good."""
        group, revision = response.header.group, response.header.revision
        start = self._next.get(group, self.request.start_revision)
        if response.compact_revision:
            raise Compacted(
                f"the watch's next revision, {start}, has been compacted away;"
                f" read the keys and watch from there (oldest revision: {response.compact_revision})",
                response.compact_revision,
            )
        if response.canceled:
            reason = response.cancel_reason or "no reason given"
            return Failure(Unavailable(f"the node ended the watch: {reason}"), retryable=True)
        if response.created:
            # From now on means: after what the shard had when the watch began.
            self._fragments.pop(group, None)
            self._advance(group, start or revision + 1)
            return []
        if not response.events:
            self._advance(group, revision + 1)
            return []
        happened = [event(e, group) for e in response.events if e.kv.mod_revision >= start]
        if response.fragment:
            # Told only once it is whole, so that a break in between neither repeats nor loses a part.
            self._fragments.setdefault(group, []).extend(happened)
            return []
        self._advance(group, max(e.kv.mod_revision for e in response.events) + 1)
        return self._fragments.pop(group, []) + happened

    def _advance(self, group: int, revision: int) -> None:
        self._next[group] = max(self._next.get(group, 0), revision)
        del self.request.start_revisions[:]
        for shard, following in sorted(self._next.items()):
            self.request.start_revisions.add(group=shard, revision=following)

    @staticmethod
    def ended(address: str) -> Failure:
        """The stream ended without a word."""
        return Failure(Unavailable(f"{address} ended the watch"), retryable=True, lost=True)


class Watch(AsyncIterator[Event]):
    """The events of `AsyncClient.watch`.

    Waiting for one may be cancelled, and loses none: the next call goes on with it. So with a timeout:

        async with asyncio.timeout(5):
            event = await anext(events)
    """

    def __init__(self, found: AsyncGenerator[list[Event], None]) -> None:
        """`found`: the events as they come."""
        self._found = found
        self._ready: deque[Event] = deque()
        self._next: asyncio.Task[list[Event]] | None = None
        """It waits for more, whoever waits for it; it knows nothing of us, so that it ends when we are dropped."""
        self._over = False

    def __del__(self) -> None:
        if self._next is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._next.get_loop().call_soon_threadsafe(self._next.cancel)

    async def __anext__(self) -> Event:
        while (event := self.taken()) is None:
            await self.come()
        return event

    def taken(self) -> Event | None:
        """The next one, if it has come already."""
        return self._ready.popleft() if self._ready else None

    async def come(self) -> None:
        """Wait until more have come. Raises StopAsyncIteration after `aclose`, and what the watch ends with, once."""
        if self._over:
            raise StopAsyncIteration
        if self._next is None:
            self._next = asyncio.create_task(self._more(self._found))
            self._next.add_done_callback(self._heard)
        task = self._next
        await asyncio.wait((task,))
        if self._over:
            raise StopAsyncIteration
        if task is self._next:  # else another waited, too, and has it
            self._next = None
            self._ready.extend(task.result())

    async def aclose(self) -> None:
        """End the watch, and whatever waits for an event of it."""
        self._over = True
        self._ready.clear()
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait((self._next,))
        await self._found.aclose()

    @staticmethod
    async def _more(found: AsyncGenerator[list[Event], None]) -> list[Event]:
        return await anext(found)

    @staticmethod
    def _heard(task: asyncio.Task[list[Event]]) -> None:
        if not task.cancelled():
            task.exception()  # perhaps nobody waits any more, which is no fault


class SyncWatch(Iterator[Event]):
    """The events of `Client.watch`. An interrupted `next` loses none: the next call goes on with it."""

    def __init__(
        self,
        asynchronous: Watch,
        run: Callable[[Coroutine[Any, Any, None]], None],
        leave: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
    ) -> None:
        """`run` waits for what is done on the client's thread; `leave` has it done there, and doesn't."""
        self._asynchronous = asynchronous
        self._run = run
        self._leave = leave
        self._over = False

    def __next__(self) -> Event:
        while not self._over:
            event = self._asynchronous.taken()
            if event is not None:
                return event
            try:
                self._run(self._asynchronous.come())
            except StopAsyncIteration:
                break
        raise StopIteration

    def close(self) -> None:
        """End the watch, and a `next` that waits in another thread."""
        self._over = True
        self._leave(self._asynchronous.aclose)

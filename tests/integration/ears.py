"""Watchers of the etcd face, many on a stream, that note what they are told and go on elsewhere when a node dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc.aio

from nebuladb.pb.etcd import watch_pb2 as pb
from nebuladb.pb.etcd.mvcc_pb2 import Event
from nebuladb.rpc.engine import engine_of

PATH: Final = "/etcdserverpb.Watch/Watch"
UNBOUNDED: Final = (("grpc.max_receive_message_length", -1),)
RETRY_SECONDS: Final = 0.1
ASK_SECONDS: Final = 0.5
SAMPLE: Final = 50
"""One event of so many tells how late it is."""
NOBODY: Final = -1


class Told:
    """What one watcher was told: mod revisions, negative those of deletions."""

    __slots__ = ("end", "key", "last", "revisions")

    def __init__(self, key: bytes, end: bytes, last: int) -> None:
        self.key = key
        self.end = end
        self.last = last
        """It was told everything up to here, or began after it."""
        self.revisions = array("q")


class Ear:
    """One stream with `watchers`, all from the revision after `since`.

    `addresses` gives where to try, best first. `pause` is awaited before each response is read. `spoil` may replace the
    events of a response: how a broken server would be seen.
    """

    def __init__(
        self,
        watchers: Sequence[tuple[bytes, bytes]],
        since: int,
        addresses: Callable[[], Sequence[str]],
        *,
        prev_kv: bool = False,
        pause: Callable[[], Any] | None = None,
        spoil: Callable[[Sequence[Event]], Sequence[Event]] = lambda events: events,
    ) -> None:
        self.told = [Told(key, end, since) for key, end in watchers]
        self.connections = 0
        self.events = 0
        self.lags: list[float] = []
        """Seconds from when a put was made until it was told; its value says when."""
        self.through = 0
        """A progress answer said that all was told up to here."""
        self.ready = asyncio.Event()
        """Every watcher was created, on this connection or an earlier one."""
        self.address = ""
        self.wrong: list[str] = []
        self._addresses = addresses
        self._prev_kv = prev_kv
        self._pause = pause
        self._spoil = spoil
        self._requests: asyncio.Queue[pb.WatchRequest] = asyncio.Queue()

    async def listen(self) -> None:
        """For ever; to be cancelled."""
        tries = 0
        while True:
            addresses = self._addresses()
            self.address = addresses[tries % len(addresses)]
            tries += 1
            async with engine_of().insecure_channel(self.address, options=UNBOUNDED) as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._one(channel)
            await asyncio.sleep(RETRY_SECONDS)

    async def _one(self, channel: Any) -> None:
        self._requests = asyncio.Queue()
        for number, watcher in enumerate(self.told, 1):
            create = pb.WatchCreateRequest(
                key=watcher.key,
                range_end=watcher.end,
                start_revision=watcher.last + 1,
                watch_id=number,
                prev_kv=self._prev_kv,
            )
            self._requests.put_nowait(pb.WatchRequest(create_request=create))
        call = channel.stream_stream(PATH, pb.WatchRequest.SerializeToString, None)(self._sent())
        created = 0
        async for raw in call:
            response = pb.WatchResponse.FromString(raw)
            if response.events:
                self._note(self.told[response.watch_id - 1], self._spoil(response.events))
            elif response.created:
                created += 1
                if created == 1:
                    self.connections += 1
                if created == len(self.told):
                    self.ready.set()
            elif response.watch_id == NOBODY:
                self.through = max(self.through, response.header.revision)
            if response.canceled:
                self.wrong.append(f"a watch was canceled: {response.cancel_reason or response.compact_revision}")
            if self._pause is not None:
                await self._pause()

    async def _sent(self) -> AsyncIterator[pb.WatchRequest]:
        while True:
            yield await self._requests.get()

    def _note(self, watcher: Told, events: Sequence[Event]) -> None:
        revisions = watcher.revisions
        for event in events:
            revision = event.kv.mod_revision
            revisions.append(revision if event.type == Event.PUT else -revision)
            watcher.last = max(watcher.last, revision)
            self.events += 1
            if self.events % SAMPLE == 0 and event.kv.value:
                self.lags.append(time.monotonic() - int(event.kv.value.split()[0]) / 1e9)

    async def caught_up(self, revision: int, seconds: float) -> bool:
        """Whether within `seconds` every watcher was told all up to `revision`."""
        deadline = time.monotonic() + seconds
        while self.through < revision:
            if time.monotonic() > deadline:
                return False
            self._requests.put_nowait(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            await asyncio.sleep(ASK_SECONDS)
        return True

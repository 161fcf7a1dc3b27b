"""``KV.Watch``: watchers of one or several shards as one stream of responses, each about one shard (S25)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Final

from nebuladb.api.backend import Backend, check_points, key_value
from nebuladb.api.deliveries import Delivery
from nebuladb.errors import (
    InvalidArgument,
    KeyspaceNotFound,
    NebulaError,
    NoLeader,
    TooManyRequests,
    Unavailable,
    WrongShard,
)
from nebuladb.kv.watcher import Event, EventBatch, Watcher
from nebuladb.node.meta import DEFAULT
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor

MAX_RESPONSE_EVENTS: Final = 1_000
MAX_RESPONSE_BYTES: Final = 1 << 20
"""Revisions share a response up to here; a larger one comes in fragments."""
MAX_PARTS: Final = 200_000
"""Of all watches of a node, one a shard each; 2 KiB of memory."""
PARTS_AT_ONCE: Final = 128
"""Of them that are made in one go: a millisecond."""
PROGRESS_SECONDS: Final = 10.0
"""So often a watch that asked for it is told of each shard without events how far it has come there."""


class ShardWatch:
    """One shard's part of a watch."""

    def __init__(
        self,
        backend: Backend,
        shard: Descriptor,
        request: pb.WatchRequest,
        span: tuple[bytes, bytes],
        start: int,
        heard: Callable[[ShardWatch], None],
    ) -> None:
        """`span`: the request's, of which each part would else have a copy."""
        self.group = shard.group
        self._backend = backend
        self._hub = backend.hub(shard)
        self.watcher: Watcher = self._hub.watch(
            *span,
            start,
            prev_kv=request.prev_kv,
            no_put=request.no_put,
            no_delete=request.no_delete,
            on_ready=lambda: heard(self),
        )
        self._created = self._empty()
        """To be sent first. Made now, because its revision is what the watch begins after."""
        self._created.created = True
        self._told = False
        """Of an event, since `progress` was asked."""
        self._held: list[Event] = []

    def _empty(self) -> pb.WatchResponse:
        return pb.WatchResponse(header=self._backend.header(self.group, self._hub.revision))

    def announced(self) -> pb.WatchResponse:
        """That it is created; once, and before all else."""
        created = self._created
        del self._created  # of a thousand shards they would be half a MiB
        return created

    def take(self) -> Iterator[pb.WatchResponse]:
        """What waits, in responses; the last one may say that the watch is canceled."""
        canceled = self.watcher.canceled
        for response in _responses(self.watcher.take(), self._held):
            self._told = True
            response.header.CopyFrom(self._backend.header(self.group, self._hub.revision))
            yield response
        if canceled and not self.watcher.compact_revision:
            if self._backend.descriptor(self.group) is not None:  # the node is leaving, or its data was damaged
                raise Unavailable(f"this node serves shard {self.group} no more; watch again, at another node")
            raise KeyspaceNotFound(f"shard {self.group} was dropped with its keyspace; the watch has ended")
        if canceled:
            response = self._empty()
            response.canceled = True
            response.compact_revision = self.watcher.compact_revision
            response.cancel_reason = f"revisions below {self.watcher.compact_revision} are compacted; watch from there"
            yield response

    def progress(self) -> pb.WatchResponse | None:
        """How far it has come, to be sent at once; None if that can't be said now, or events have said it lately.

        Not while something waits: who is told of a revision passes over what comes of it later.
        """
        told, self._told = self._told, False
        watcher = self.watcher
        return None if told or watcher.lagging or watcher.waiting or watcher.canceled or self._held else self._empty()

    def close(self) -> None:
        """Forget it."""
        self.watcher.on_ready = None
        self._hub.remove(self.watcher)


async def watch(
    backend: Backend, request: pb.WatchRequest, end: Callable[[], None] | None = None
) -> AsyncIterator[pb.WatchResponse]:
    """`created` of each shard, then events; ends with a `canceled` response if a start is compacted away. `end`: see
    `Delivery`. Raises `NoLeader` once a shard has had no leader for some seconds, as far as this node knows."""
    shards = backend.routing.covering(request.keyspace or DEFAULT, request.key, request.range_end)
    shards = shards or [backend.route(request.keyspace, request.key)]  # a range without keys: the hub refuses it
    starts, span = _starts(backend, request, shards), (request.key, request.range_end)
    ready, room = asyncio.Event(), asyncio.Event()
    delivery = backend.deliveries.stream(room, end)
    parts: list[ShardWatch] = []
    fresh: dict[ShardWatch, None] = {}
    """Parts that have something to say: an event of one of a thousand shards costs one step, not as many."""
    leaderless = False

    def heard(part: ShardWatch) -> None:
        fresh[part] = None
        ready.set()

    def lost(_: NebulaError) -> None:
        nonlocal leaderless
        leaderless = True
        ready.set()

    _reserve(backend, len(shards))
    following = ExitStack()
    try:
        following.enter_context(backend.leadership.followed([shard.group for shard in shards], lost))
        for at in range(0, len(shards), PARTS_AT_ONCE):
            async with backend.glances:
                for shard in shards[at : at + PARTS_AT_ONCE]:
                    start = starts.get(shard.group, request.start_revision)
                    parts.append(ShardWatch(backend, shard, request, span, start, heard))
        fresh.update(dict.fromkeys(parts))  # one may be canceled already
        for part in parts:
            yield part.announced()
        due = _later(request)
        while True:
            ready.clear()
            if leaderless:
                raise NoLeader("this node knows no leader of a shard of the watch; watch again, at another node")
            sent, turn = False, list(fresh)
            fresh.clear()
            for part in turn:
                await _admitted(backend, delivery, part.watcher)
                for response in part.take():
                    sent = True
                    yield response
                    if response.canceled:
                        return
                    del response  # the next one may be long in coming
                delivery.give()
            # What was taken may have made room for a watcher that lags.
            backend.pump.work()
            # By time, whatever the others do: compaction shall not overtake a shard without events among busy ones.
            left = None if due is None else due - asyncio.get_running_loop().time()
            up = left is not None and left <= 0
            if up or (not sent and not await _wait(ready, left)):
                due = _later(request)
                for part in parts:
                    if (progress := part.progress()) is not None:
                        yield progress
    finally:
        following.close()
        delivery.give()
        backend.leaving.add(_forgotten(backend, parts, len(shards)))


def _reserve(backend: Backend, count: int) -> None:
    """Room for so many parts, which `_forgotten` gives back."""
    if backend.parts + count > MAX_PARTS:
        raise TooManyRequests(f"this node has {MAX_PARTS} watches, each counted once a shard; watch at another node")
    backend.parts += count


def _forgotten(backend: Backend, parts: Iterable[ShardWatch], count: int) -> Iterator[None]:
    """Close the parts that were made of so many."""
    for part in parts:
        part.close()
        yield
    backend.parts -= count


def _starts(backend: Backend, request: pb.WatchRequest, shards: list[Descriptor]) -> dict[int, int]:
    """Where the watch begins in each shard; one that isn't in it: at `request.start_revision`."""
    if request.start_revision and len(shards) > 1:
        raise WrongShard(
            "a revision is one shard's; over several shards a watch starts with start_revisions,"
            " in nebula-cli --from-revision SHARD:REVISION"
        )
    check_points(request.start_revisions)
    starts = {pair.group: pair.revision for pair in request.start_revisions}
    backend.check_groups(request.keyspace, starts)  # or it would begin now, and miss what was asked for
    if min((request.start_revision, *starts.values())) < 0:
        raise InvalidArgument("a watch starts at a revision from 1 on, or at 0: with the next change")
    return starts


async def _admitted(backend: Backend, delivery: Delivery, watcher: Watcher) -> None:
    """Wait until what waits for a watch may be delivered, and its turn has come."""
    turn = False
    while True:
        while not delivery.admits(watcher.waiting):
            await delivery.room.wait()
            delivery.room.clear()
        if turn or not await backend.portions.turn(watcher.waiting):
            return
        turn = True  # but it may be more by now


def _later(request: pb.WatchRequest) -> float | None:
    """When progress is due next, if it is wanted."""
    return asyncio.get_running_loop().time() + PROGRESS_SECONDS if request.progress else None


async def _wait(ready: asyncio.Event, seconds: float | None) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    return True


def _responses(batches: Iterable[EventBatch], held: list[Event]) -> Iterator[pb.WatchResponse]:
    """Whole revisions, packed; one that is too large for a response in fragments (etcd 37). Of one that comes in parts
    `held` keeps the last event until it is known whether more follow: the last response is no fragment, and not empty.
    """
    response, size = pb.WatchResponse(), 0
    for batch in batches:
        events = (*held, *batch.events) if held else batch.events
        cut = batch.more or bool(held)
        held.clear()
        if response.events and (cut or not _fits(size + batch.size, len(response.events) + len(events))):
            yield response
            response, size = pb.WatchResponse(), 0
        if batch.more:
            held.append(events[-1])
            events = events[:-1]
        for event in events:
            weight = _weight(event)
            if response.events and not _fits(size + weight, len(response.events) + 1):
                response.fragment = True
                yield response
                response, size = pb.WatchResponse(), 0
            size += weight
            _add(response, event)
        if batch.more and response.events:
            response.fragment = True
            yield response
            response, size = pb.WatchResponse(), 0
    if response.events:
        yield response


def _fits(size: int, events: int) -> bool:
    return size <= MAX_RESPONSE_BYTES and events <= MAX_RESPONSE_EVENTS


def _weight(event: Event) -> int:
    return len(event.kv.key) + len(event.kv.value) + (len(event.previous.value) if event.previous else 0)


def _add(response: pb.WatchResponse, event: Event) -> None:
    message = response.events.add(type=pb.Event.DELETE if event.deleted else pb.Event.PUT, kv=key_value(event.kv))
    if event.previous is not None:
        message.prev_kv.CopyFrom(key_value(event.previous))

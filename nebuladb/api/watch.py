"""``KV.Watch``: a hub's watcher as a stream of responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from nebuladb.api.backend import Backend, key_value
from nebuladb.kv.watcher import EventBatch, Watcher
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor

MAX_RESPONSE_EVENTS: Final = 1_000
MAX_RESPONSE_BYTES: Final = 1 << 20
"""Revisions share a response up to here; a larger revision has one of its own."""
PROGRESS_SECONDS: Final = 10.0
"""After so long without an event a watch that asked for it is told how far it has come."""


async def watch(backend: Backend, shard: Descriptor, request: pb.WatchRequest) -> AsyncIterator[pb.WatchResponse]:
    """`created`, then events; ends with a `canceled` response if its start is compacted away."""
    hub = backend.hub(shard)
    ready = asyncio.Event()
    watcher = hub.watch(
        request.key,
        request.range_end,
        request.start_revision,
        prev_kv=request.prev_kv,
        no_put=request.no_put,
        no_delete=request.no_delete,
        on_ready=ready.set,
    )
    try:
        backend.pump.work()
        yield pb.WatchResponse(header=backend.header(shard.group, hub.revision), created=True)
        while True:
            batches = watcher.take()
            ready.clear()
            backend.pump.work()
            for response in _responses(batches):
                response.header.CopyFrom(backend.header(shard.group, hub.revision))
                yield response
            if watcher.canceled and not batches:
                yield _canceled(backend, shard, watcher)
                return
            if batches:
                continue
            if not await _wait(ready, PROGRESS_SECONDS if request.progress else None) and not watcher.lagging:
                yield pb.WatchResponse(header=backend.header(shard.group, watcher.cursor - 1))
    finally:
        hub.remove(watcher)


async def _wait(ready: asyncio.Event, seconds: float | None) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    return True


def _responses(batches: list[EventBatch]) -> list[pb.WatchResponse]:
    """Whole revisions, packed."""
    responses: list[pb.WatchResponse] = []
    size = MAX_RESPONSE_BYTES
    for batch in batches:
        weight = sum(len(event.kv.key) + len(event.kv.value) for event in batch.events)
        full = size + weight > MAX_RESPONSE_BYTES
        if full or len(responses[-1].events) + len(batch.events) > MAX_RESPONSE_EVENTS:
            responses.append(pb.WatchResponse())
            size = 0
        size += weight
        for event in batch.events:
            message = responses[-1].events.add(
                type=pb.Event.DELETE if event.deleted else pb.Event.PUT, kv=key_value(event.kv)
            )
            if event.previous is not None:
                message.prev_kv.CopyFrom(key_value(event.previous))
    return responses


def _canceled(backend: Backend, shard: Descriptor, watcher: Watcher) -> pb.WatchResponse:
    return pb.WatchResponse(
        header=backend.header(shard.group, backend.hub(shard).revision),
        canceled=True,
        cancel_reason=f"revisions below {watcher.compact_revision} are compacted; watch from there",
        compact_revision=watcher.compact_revision,
    )

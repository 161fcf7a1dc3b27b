"""``KV.Scan``: pages in key order over all shards of a range, each shard read at one pinned revision (S24, S25)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from heapq import merge
from itertools import chain
from typing import Final

from nebuladb.api.backend import Backend, key_value
from nebuladb.errors import Corruption, InvalidArgument, WrongShard
from nebuladb.kv import check
from nebuladb.kv.answer import KeyValue
from nebuladb.node.meta import DEFAULT
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor

PAGE_KEYS: Final = 1_000
PAGE_BYTES: Final = 1 << 20
"""A page, and what is read ahead of it in all shards together."""
MIN_STRETCH_KEYS: Final = 32
"""Keys that are read from one shard at a time at least, however many shards there are."""


class Scan:
    """The rows of one scan. Reading ahead is bounded by a stretch a shard."""

    def __init__(self, backend: Backend, request: pb.ScanRequest, pinned: list[tuple[Descriptor, int]]) -> None:
        self._backend = backend
        self._request = request
        self._pinned = pinned
        share = max(1, len(pinned))
        self._stretch_keys = max(MIN_STRETCH_KEYS, PAGE_KEYS // share)
        self._stretch_bytes = PAGE_BYTES // share

    def rows(self) -> Iterator[KeyValue]:
        """All rows in key order. Raises what the stores raise."""
        parts = [self._rows_of(shard, revision) for shard, revision in self._pinned]
        hashed = any(shard.slots[1] for shard, _ in self._pinned)
        return merge(*parts, key=lambda kv: kv.key) if hashed else chain.from_iterable(parts)

    def _rows_of(self, shard: Descriptor, revision: int) -> Iterator[KeyValue]:
        request = self._request
        end = _lower_end(request.range_end or check.TO_THE_LAST, shard.end)
        cursor = max(request.key, shard.start) or b"\0"
        limit = min(self._stretch_keys, request.limit or self._stretch_keys)
        while cursor:
            # The store is asked for anew: between pages the node may have lost the replica.
            store = self._backend.pump.store(shard.group)
            try:
                page = store.scan(
                    cursor,
                    end,
                    revision=revision,
                    limit=limit,
                    max_bytes=self._stretch_bytes,
                    keys_only=request.keys_only,
                )
            except Corruption as error:
                error.group = shard.group  # so that the replica gets its data anew
                raise
            yield from page.kvs
            cursor = page.cursor


async def scan(backend: Backend, request: pb.ScanRequest, timeout: float) -> AsyncIterator[pb.ScanResponse]:
    """The pages of a scan. Raises `InvalidArgument`, `WrongShard`, `Compacted`, `FutureRevision`, `Unavailable`."""
    if request.limit < 0:
        raise InvalidArgument("limit must not be negative")
    end = request.range_end or check.TO_THE_LAST
    shards = backend.routing.covering(request.keyspace or DEFAULT, request.key, end)
    pinned = await _pin(backend, request, shards, timeout)
    header = backend.header(pinned[0][0].group, pinned[0][1]) if len(pinned) == 1 else backend.header()
    page = pb.ScanResponse(header=header)
    page.revisions.extend(pb.ShardRevision(group=shard.group, revision=revision) for shard, revision in pinned)
    size = 0
    page_keys = min(request.page_size or PAGE_KEYS, PAGE_KEYS)
    for sent, row in enumerate(Scan(backend, request, pinned).rows()):
        if request.limit and sent == request.limit:
            page.more = True
            break
        page.kvs.append(key_value(row))
        size += len(row.key) + len(row.value)
        if len(page.kvs) >= page_keys or size >= PAGE_BYTES:
            yield page
            await asyncio.sleep(0)
            page, size = pb.ScanResponse(header=header), 0
    yield page


async def _pin(
    backend: Backend, request: pb.ScanRequest, shards: list[Descriptor], timeout: float
) -> list[tuple[Descriptor, int]]:
    """Each shard with the revision that is read in it: the newest, or what the request names."""
    if request.revision and len(shards) > 1:
        raise WrongShard("a revision is one shard's; scan one shard's keys, or leave the revision open")
    named = {pair.group: pair.revision for pair in request.revisions}
    stores = await asyncio.gather(
        *(
            backend.current(shard, timeout, serializable=request.serializable, max_staleness=request.max_staleness)
            for shard in shards
        )
    )
    return [
        (shard, named.get(shard.group) or request.revision or store.revision)
        for shard, store in zip(shards, stores, strict=True)
    ]


def _lower_end(end: bytes, shard_end: bytes) -> bytes:
    """The lower of a range's end and a shard's; b"\\0" and empty mean none."""
    if not shard_end:
        return end
    return shard_end if end == check.TO_THE_LAST else min(end, shard_end)

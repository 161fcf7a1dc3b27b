"""``KV.Scan``: pages in key order over all shards of a range, each shard read at one pinned revision (S24, S25)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from heapq import heapify, heappop, heapreplace
from typing import Final

from nebuladb.api.backend import Backend, key_value
from nebuladb.errors import Corruption, InvalidArgument, WrongShard
from nebuladb.kv import check
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.pin import Pin
from nebuladb.node.meta import DEFAULT
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor

PAGE_KEYS: Final = 1_000
PAGE_BYTES: Final = 1 << 20
"""A page, and what is read ahead of it in all shards together."""
MIN_STRETCH_KEYS: Final = 32
"""Keys that are read from one shard at a time at least, however many shards there are."""
STRETCH_ROWS: Final = 2_048
"""Rows that are looked at in one turn of the loop: 5 ms."""
HOLD_SECONDS: Final = 10.0
"""For so long a scan's revisions are kept for a client that takes no page; after that it goes on if nothing was
compacted meanwhile."""


class _Part:
    """What is left of one shard."""

    __slots__ = ("cursor", "end", "group", "revision", "rows")

    def __init__(self, shard: Descriptor, revision: int, request: pb.ScanRequest) -> None:
        self.group = shard.group
        self.revision = revision
        self.cursor = max(request.key, shard.start) or b"\0"
        """Where the next stretch begins; empty: nowhere."""
        self.end = _lower_end(request.range_end or check.TO_THE_LAST, shard.end)
        self.rows: deque[KeyValue] = deque()
        """Read ahead."""


class Scan:
    """The rows of one scan, each shard's from a pin, so that a compaction between two pages takes nothing from it
    (S24). Reading ahead is bounded by a stretch a shard."""

    def __init__(self, backend: Backend, request: pb.ScanRequest, pinned: list[tuple[Descriptor, int]]) -> None:
        self._backend = backend
        self._keys_only = request.keys_only
        self._parts = [_Part(shard, revision, request) for shard, revision in pinned]
        self._merged = any(shard.slots[1] for shard, _ in pinned)
        share = max(1, len(pinned))
        keys = max(MIN_STRETCH_KEYS, PAGE_KEYS // share)
        self._stretch_keys = min(keys, request.limit or keys)
        self._stretch_bytes = PAGE_BYTES // share
        self._pins: dict[int, Pin] = {}
        self._timer: asyncio.TimerHandle | None = None

    def pin(self) -> None:
        """Keep all revisions from now on; raises like the stores. To be called in the turn that chose them, and ended
        with `release` in any case."""
        for part in self._parts:
            self._pin(part)

    async def rows(self) -> AsyncIterator[KeyValue]:
        """All rows in key order. Raises what the stores raise."""
        if not self._merged:
            for part in self._parts:
                while await self._fill(part):
                    yield part.rows.popleft()
            return
        heap = [(part.rows[0].key, place) for place, part in enumerate(self._parts) if await self._fill(part)]
        heapify(heap)
        while heap:
            place = heap[0][1]
            part = self._parts[place]
            yield part.rows.popleft()
            if part.rows or await self._fill(part):
                heapreplace(heap, (part.rows[0].key, place))
            else:
                heappop(heap)

    async def _fill(self, part: _Part) -> bool:
        """Whether there is another row; it is read then. The loop comes round between stretches: a million deleted
        keys have no row to show for the time that it takes to pass them."""
        while not part.rows and part.cursor:
            try:
                async with self._backend.pace:
                    page = self._pin(part).scan(
                        part.cursor,
                        part.end,
                        limit=self._stretch_keys,
                        max_bytes=self._stretch_bytes,
                        max_rows=STRETCH_ROWS,
                        keys_only=self._keys_only,
                    )
            except Corruption as error:
                error.group = part.group  # so that the replica gets its data anew
                raise
            part.rows.extend(page.kvs)
            part.cursor = page.cursor
            if not part.cursor:
                self._pins[part.group].close()
            await asyncio.sleep(0)
        return bool(part.rows)

    def hold(self) -> None:
        """A page is about to be taken: keep the revisions for `HOLD_SECONDS` from now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self.release)

    def release(self) -> None:
        """Keep nothing any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for pin in self._pins.values():
            pin.close()

    def _pin(self, part: _Part) -> Pin:
        """The shard's pin, made anew if the old one was let go. Raises as the stores do."""
        # The store is asked for each time: between pages the node may have lost the replica.
        store = self._backend.pump.store(part.group)
        pin = self._pins.get(part.group)
        if pin is None or pin.closed:
            pin = self._pins[part.group] = store.pin(part.revision)
        return pin


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
    size = sent = 0
    page_keys = min(request.page_size or PAGE_KEYS, PAGE_KEYS)
    reading = Scan(backend, request, pinned)
    try:
        reading.pin()
        async for row in reading.rows():
            if request.limit and sent == request.limit:
                page.more = True
                break
            sent += 1
            page.kvs.append(key_value(row))
            size += len(row.key) + len(row.value)
            if len(page.kvs) >= page_keys or size >= PAGE_BYTES:
                reading.hold()
                yield page
                page, size = pb.ScanResponse(header=header), 0
    finally:
        reading.release()
    yield page


async def _pin(
    backend: Backend, request: pb.ScanRequest, shards: list[Descriptor], timeout: float
) -> list[tuple[Descriptor, int]]:
    """Each shard with the revision that is read in it: the newest, or what the request names."""
    if request.revision and len(shards) > 1:
        raise WrongShard("a revision is one shard's; scan one shard's keys, or leave the revision open")
    named = {pair.group: pair.revision for pair in request.revisions}
    for group in named:
        backend.route_group(request.keyspace, group)  # or the rest of it would be another keyspace's of the same name
    stores = await asyncio.gather(
        *(
            backend.current(shard, timeout, serializable=request.serializable, max_staleness=request.max_staleness)
            for shard in shards
        )
    )
    read = [
        (shard, named.get(shard.group) or request.revision or store.revision)
        for shard, store in zip(shards, stores, strict=True)
    ]
    # A scan that goes on here may have begun at a node that was further than this one, which needn't be up to date.
    behind = [shard for (shard, revision), store in zip(read, stores, strict=True) if revision > store.revision]
    await asyncio.gather(*(backend.current(shard, timeout) for shard in behind))
    return read


def _lower_end(end: bytes, shard_end: bytes) -> bytes:
    """The lower of a range's end and a shard's; b"\\0" and empty mean none."""
    if not shard_end:
        return end
    return shard_end if end == check.TO_THE_LAST else min(end, shard_end)

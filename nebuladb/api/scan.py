"""``KV.Scan``: pages in key order over all shards of a range, each shard read at one pinned revision (S24, S25)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from heapq import heappop, heappush, heapreplace
from typing import Final

from nebuladb.api.backend import Backend, check_points, key_value
from nebuladb.api.deliveries import Delivery
from nebuladb.api.drive import Due
from nebuladb.env import probe
from nebuladb.errors import Corruption, InvalidArgument, WrongShard
from nebuladb.kv import check
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.pin import Pin
from nebuladb.kv.store import Store
from nebuladb.node.meta import DEFAULT
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor

PAGE_KEYS: Final = 1_000
PAGE_BYTES: Final = 1 << 20
"""A page, and what is read ahead of it in all shards together."""
FIRST_PAGE_BYTES: Final = 16 << 10
"""A page of a client that reads slowly, or hasn't shown yet that it reads. With what is read ahead it is a small
delivery (``api.deliveries``): it waits for nobody, and isn't ended for others."""
PAGE_GROWTH: Final = 4
PROOF_BYTES: Final = 256 << 10
"""So much a client has taken at once before its pages grow: more than waits for it in the transport."""
SLOW_SECONDS: Final = 0.5
"""Who takes longer for a page gets small ones."""
MIN_STRETCH_KEYS: Final = 32
"""Keys that are read from one shard at a time at least, however many shards there are."""
MIN_STRETCH_BYTES: Final = 1 << 10
"""Likewise."""
ALIVE_SECONDS: Final = 0.1
"""After so long a page goes out as it is, be it empty: its client waits for one no longer than its time-out, and hears
so that the scan goes on."""
SHARDS_AT_ONCE: Final = 128
"""Whose revisions are asked for in one go: some milliseconds."""
STRETCH_ROWS: Final = 2_048
"""Rows that are looked at in one turn of the loop: 5 ms."""
HOLD_SECONDS: Final = 10.0
"""For so long a scan's revisions are kept for a client that takes no page; after that it goes on if nothing was
compacted meanwhile."""


class _Part:
    """What is left of one shard."""

    __slots__ = ("cursor", "done", "end", "group", "revision", "rows", "start")

    def __init__(self, shard: Descriptor, revision: int, key: bytes, end: bytes) -> None:
        self.group = shard.group
        self.revision = revision
        self.start = self.cursor = max(key, shard.start) or b"\0"
        """Where the next stretch begins; empty: nowhere."""
        self.end = _lower_end(end or check.TO_THE_LAST, shard.end)
        self.rows: deque[KeyValue] = deque()
        """Read ahead."""
        self.done = False
        """All of it has been sent."""

    def rewind(self, after: bytes) -> None:
        """Go on behind the key `after`; empty: at the beginning."""
        if not self.done:
            self.rows.clear()
            start = max(after + b"\0" if after else b"", self.start)
            self.cursor = start if self.end == check.TO_THE_LAST or start < self.end else b""


class Scan:
    """The rows of one scan, each shard's from a pin, so that a compaction between two pages takes nothing from it
    (S24). Reading ahead is bounded by a stretch a shard."""

    def __init__(self, backend: Backend, request: pb.ScanRequest, pinned: list[tuple[Descriptor, int]]) -> None:
        self._backend = backend
        self._keys_only = request.keys_only
        key, end = request.key, request.range_end  # of which each part would else have a copy
        self._parts = [_Part(shard, revision, key, end) for shard, revision in pinned]
        self._merged = any(shard.slots[1] for shard, _ in pinned)
        self._share = max(1, len(pinned))
        keys = max(MIN_STRETCH_KEYS, PAGE_KEYS // self._share)
        self._stretch_keys = min(keys, request.limit or keys)
        self._page_bytes = FIRST_PAGE_BYTES
        self._proven = 0
        """Bytes that the client took at once, in pages of this size."""
        self._filled = self._ahead = 0
        self.last = b""
        """Key of the last row that was read for a page."""
        self._page: list[pb.ScanResponse] = []
        self._rows = self._all()
        self._pins: dict[int, Pin] = {}
        self._timer: asyncio.TimerHandle | None = None

    def pin(self) -> None:
        """Keep all revisions from now on; raises like the stores. To be called in the turn that chose them, and ended
        with `release` in any case."""
        for part in self._parts:
            self._pin(part)

    async def fill(self, page: pb.ScanResponse, keys: int, left: int) -> bool:
        """Add the next rows to `page`: at most `keys`, at most `left` if that isn't negative, and none after
        `ALIVE_SECONDS`. Whether the scan is over then. The page is kept for `take`. Raises what the stores raise."""
        self._page = [page]
        self._filled = 0
        loop = asyncio.get_running_loop()
        due = loop.time() + ALIVE_SECONDS
        async with self._backend.scanning:
            async for row in self._rows:
                if row is None:
                    if loop.time() >= due:
                        return False
                    continue
                if len(page.kvs) == left:
                    page.more = True
                    return True
                page.kvs.append(key_value(row))
                self.last = row.key
                self._filled += _weight(row)
                if len(page.kvs) >= keys or self._filled >= self._page_bytes:
                    return False
        return True

    def take(self) -> pb.ScanResponse:
        """The page, of which nothing is kept: its memory is free when its last reader drops it, and no earlier."""
        return self._page.pop()

    @property
    def count(self) -> int:
        """Rows of the page."""
        return len(self._page[0].kvs)

    @property
    def size(self) -> int:
        """Bytes of the last page, and of what is read ahead."""
        return self._filled + self._ahead

    async def rewind(self, after: bytes) -> None:
        """Give up what is read, and go on behind the key `after`, the last one that was sent; empty: there is none."""
        self._page.clear()
        await self._rows.aclose()
        for part in self._parts:
            part.rewind(after)
        self._ahead = 0
        self._rows = self._all()

    def sending(self) -> None:
        """A page is about to be taken. Shards that have no more after it are kept no longer."""
        for part in self._parts:
            if not (part.done or part.rows or part.cursor):
                part.done = True
                if part.group in self._pins:
                    self._pins[part.group].close()
        self.hold()

    def sent(self, seconds: float) -> None:
        """The page was taken in so many seconds: who reads gets larger ones."""
        if seconds > SLOW_SECONDS:
            self._page_bytes, self._proven = FIRST_PAGE_BYTES, 0
            return
        self._proven += self._filled
        if self._proven >= PROOF_BYTES and self._page_bytes < PAGE_BYTES:
            self._page_bytes, self._proven = min(self._page_bytes * PAGE_GROWTH, PAGE_BYTES), 0

    async def _all(self) -> AsyncGenerator[KeyValue | None, None]:
        """The rows in key order; None after each stretch that had none."""
        if not self._merged:
            for part in self._parts:
                while part.rows or part.cursor:
                    yield self._pop(part) if part.rows or await self._fill(part) else None
            return
        heap: list[tuple[bytes, int]] = []
        empty = deque(range(len(self._parts)))
        """Parts that aren't in the heap, and may have more: nobody knows yet which row is the next."""
        while heap or empty:
            while empty:
                part = self._parts[empty[0]]
                if part.cursor and await self._fill(part):
                    heappush(heap, (part.rows[0].key, empty.popleft()))
                elif part.cursor:
                    yield None
                else:
                    empty.popleft()
            if heap:
                place = heap[0][1]
                part = self._parts[place]
                yield self._pop(part)
                if part.rows:
                    heapreplace(heap, (part.rows[0].key, place))
                else:
                    empty.append(heappop(heap)[1])

    def _pop(self, part: _Part) -> KeyValue:
        row = part.rows.popleft()
        self._ahead -= _weight(row)
        return row

    async def _fill(self, part: _Part) -> bool:
        """Read a stretch, and let the loop come round: a million deleted keys have no row to show for the time that it
        takes to pass them. Whether there is a row."""
        try:
            async with self._backend.pace:
                page = self._pin(part).scan(
                    part.cursor,
                    part.end,
                    limit=self._stretch_keys,
                    max_bytes=max(MIN_STRETCH_BYTES, self._page_bytes // self._share),
                    max_rows=STRETCH_ROWS,
                    keys_only=self._keys_only,
                )
        except Corruption as error:
            error.group = part.group  # so that the replica gets its data anew
            raise
        part.rows.extend(page.kvs)
        self._ahead += sum(map(_weight, page.kvs))
        part.cursor = page.cursor
        await asyncio.sleep(0)
        return bool(part.rows)

    def hold(self) -> None:
        """Keep the revisions for `HOLD_SECONDS` from now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self.release)

    def release(self) -> None:
        """Keep nothing any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for pin in self._pins.values():
            pin.close()

    async def close(self) -> None:
        """Keep nothing any more, and read nothing. Idempotent."""
        self.release()
        # A generator that stands amid its rows leads here, as this to it: what is read ahead would be the collector's,
        # which counts objects, and no bytes.
        await self._rows.aclose()

    def _pin(self, part: _Part) -> Pin:
        """The shard's pin, made anew if the old one was let go. Raises as the stores do."""
        # The store is asked for each time: between pages the node may have lost the replica.
        store = self._backend.pump.store(part.group)
        pin = self._pins.get(part.group)
        if pin is None or pin.closed:
            pin = self._pins[part.group] = store.pin(part.revision)
        return pin


async def scan(
    backend: Backend, request: pb.ScanRequest, timeout: float, end: Callable[[], None] | None = None
) -> AsyncIterator[pb.ScanResponse]:
    """The pages of a scan; `end`: see `Delivery`. A page that there is no room for is given up, and read again when
    there is. Raises `InvalidArgument`, `WrongShard`, `Compacted`, `FutureRevision`, `Unavailable`."""
    if request.limit < 0:
        raise InvalidArgument("limit must not be negative")
    check_points(request.revisions)
    shards = backend.routing.covering(request.keyspace or DEFAULT, request.key, request.range_end or check.TO_THE_LAST)
    pinned = await _pin(backend, request, shards, timeout)
    header = backend.header(pinned[0][0].group, pinned[0][1]) if len(pinned) == 1 else backend.header()
    revisions = [pb.ShardRevision(group=shard.group, revision=revision) for shard, revision in pinned]
    page_keys = min(request.page_size or PAGE_KEYS, PAGE_KEYS)
    reading = Scan(backend, request, pinned)
    sending = False

    def late() -> None:
        if sending and end is not None:  # while it reads, nobody waits for its client
            end()

    delivery = backend.deliveries.stream(asyncio.Event(), late if end is not None else None)
    sent, after, over = 0, b"", False
    try:
        reading.pin()
        while not over:
            # The page has no name here: that would keep it, beside what it is encoded to, while its client takes it.
            left = request.limit - sent if request.limit else -1
            over = await reading.fill(pb.ScanResponse(header=header, revisions=revisions), page_keys, left)
            if not delivery.admits(size := reading.size):
                probe("scan waits for slower ones")
                await reading.rewind(after)
                reading.hold()
                await _room(delivery, size)
                over = False
                continue
            sent, after, revisions = sent + reading.count, reading.last, []
            reading.sending()
            if over:
                reading.release()
            delivery.begin()
            begun, sending = asyncio.get_running_loop().time(), True
            yield reading.take()
            sending = False
            delivery.give()
            reading.sent(asyncio.get_running_loop().time() - begun)
    finally:
        delivery.give()
        await reading.close()


async def _room(delivery: Delivery, size: int) -> None:
    """Wait until a page of this size may be sent."""
    while not delivery.admits(size):
        await delivery.room.wait()
        delivery.room.clear()


async def _pin(
    backend: Backend, request: pb.ScanRequest, shards: list[Descriptor], timeout: float
) -> list[tuple[Descriptor, int]]:
    """Each shard with the revision that is read in it: the newest, or what the request names."""
    if request.revision and len(shards) > 1:
        raise WrongShard("a revision is one shard's; scan one shard's keys, or leave the revision open")
    named = {pair.group: pair.revision for pair in request.revisions}
    backend.check_groups(request.keyspace, named)  # or the rest of it would be another keyspace's of the same name
    stores = await _stores(
        backend, shards, timeout, serializable=request.serializable, max_staleness=request.max_staleness
    )
    read = [
        (shard, named.get(shard.group) or request.revision or store.revision)
        for shard, store in zip(shards, stores, strict=True)
    ]
    # A scan that goes on here may have begun at a node that was further than this one, which needn't be up to date.
    behind = [shard for (shard, revision), store in zip(read, stores, strict=True) if revision > store.revision]
    await _stores(backend, behind, timeout)
    return read


async def _stores(
    backend: Backend, shards: list[Descriptor], timeout: float, *, serializable: bool = False, max_staleness: int = 0
) -> list[Store]:
    """As `Backend.current` of each, of a thousand some a turn of the loop."""
    found, due = list[Store](), Due(timeout)
    for at in range(0, len(shards), SHARDS_AT_ONCE):
        async with backend.glances:
            asking = asyncio.gather(
                *(
                    backend.current(shard, due.left(), serializable=serializable, max_staleness=max_staleness)
                    for shard in shards[at : at + SHARDS_AT_ONCE]
                )
            )
            try:
                await asyncio.sleep(0)  # each has asked then, and that is what takes time
            except asyncio.CancelledError:
                asking.cancel()
                raise
        found += await asking
    return found


def _weight(row: KeyValue) -> int:
    return len(row.key) + len(row.value)


def _lower_end(end: bytes, shard_end: bytes) -> bytes:
    """The lower of a range's end and a shard's; b"\\0" and empty mean none."""
    if not shard_end:
        return end
    return shard_end if end == check.TO_THE_LAST else min(end, shard_end)

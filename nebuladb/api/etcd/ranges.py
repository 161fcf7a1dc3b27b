"""Ranges of any size: read in stretches of one turn each from a pin, answered whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.requests import selection
from nebuladb.api.etcd.wire import key_value, message_field, number_field
from nebuladb.errors import NebulaError, ResultTooLarge, TooManyRequests
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.pin import Pin
from nebuladb.kv.selection import Selection
from nebuladb.kv.store import Store
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.shard import Descriptor

STRETCH_KEYS: Final = 1_000
STRETCH_BYTES: Final = 1 << 20
STRETCH_ROWS: Final = 2_048
"""What one turn of the loop reads: 5 ms."""
MAX_RANGE_BYTES: Final = 64 << 20
"""Of one answer: 100,000 keys with values of 600 bytes."""
MAX_HELD_BYTES: Final = 4 * MAX_RANGE_BYTES
"""Of all answers that are being put together on this node, or, with grpcio, wait for clients to take them; our own
engine has a bound of its own for those (`ServerLimits.unread_total`)."""
SORTED_OVERHEAD: Final = 300
"""What a key costs in memory while it waits to be sorted, beyond its bytes."""
HOLD_SECONDS: Final = 10.0
"""For so long a stream's revision is kept for a client that takes nothing; after that it goes on if nothing was
compacted meanwhile."""


class _Reading:
    """One range of one store, at one revision."""

    def __init__(self, store: Callable[[], Store], request: pb.RangeRequest, chosen: Selection) -> None:
        """`store` gives the shard's, or raises."""
        self.counted = 0
        self.size = 0
        """Bytes of the last stretch."""
        self._store = store
        self._end = request.range_end or b""
        self._cursor = request.key
        self._chosen = chosen
        self._pin = store().pin(request.revision)
        self._released = False

    @property
    def ended(self) -> bool:
        """Whether all of it was read."""
        return not self._cursor

    def stretch(self, keys: int) -> Sequence[KeyValue]:
        """The next keys, `keys` at most; with 0 keys are counted only."""
        page = self._held().scan(
            self._cursor,
            self._end,
            limit=min(keys, STRETCH_KEYS),
            max_bytes=STRETCH_BYTES,
            max_rows=STRETCH_ROWS,
            keys_only=self._chosen.blank,
            keep=self._chosen.keep,
        )
        self.counted += page.counted
        self.size = page.size
        self._cursor = page.cursor
        if not page.cursor:
            self._pin.close()
        return page.kvs

    def _held(self) -> Pin:
        if self._released:
            # The store is asked for anew: meanwhile the node may have lost the replica, or got its data by snapshot.
            self._pin, self._released = self._store().pin(self._pin.revision), False
        return self._pin

    def release(self) -> None:
        """Keep the revision no longer; a further `stretch` may find it compacted. Idempotent."""
        self._pin.close()
        self._released = True


class Ranges:
    """All ranges of one node's face that are being read."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self.held = 0
        """Bytes of answers, as `MAX_HELD_BYTES` counts them."""

    async def answer(self, shard: Descriptor, request: pb.RangeRequest, context: Any) -> bytes:
        """``RangeResponse``. Raises what the store raises, `ResultTooLarge` or `TooManyRequests`."""
        backend = self._face.backend
        store = await backend.current(shard, self._face.timeout(context), serializable=request.serializable)
        revision = store.revision
        chosen = selection(request)
        try:
            reading = _Reading(lambda: backend.pump.store(shard.group), request, chosen)
            try:
                shown, cut, taken = await self._read(reading, chosen)
            finally:
                reading.release()
        except NebulaError as error:
            error.group = shard.group  # so that the replica gets its data anew, where that is damaged
            raise
        if taken > STRETCH_BYTES:
            context.add_done_callback(lambda _: self._give_back(taken))
        else:
            self._give_back(taken)
        more = b"\x18\x01" if cut else b""
        prefix = self._face.prefix(shard.group, revision)
        return b"".join((prefix, *shown, more, number_field(b"\x20", reading.counted)))

    async def _read(self, reading: _Reading, chosen: Selection) -> tuple[list[bytes], bool, int]:
        """What is shown, as fields of the response; whether the limit cut some; and what of `held` the caller gives
        back."""
        found: list[KeyValue] = []
        shown: list[bytes] = []
        taken = 0
        enough = chosen.enough or (1 << 63)
        try:
            while True:
                async with self._face.backend.pace:
                    kvs = reading.stretch(0 if chosen.count_only else enough - len(found) - len(shown))
                    size = reading.size
                    if chosen.sorted:
                        found += kvs
                        size += SORTED_OVERHEAD * len(kvs)
                    else:
                        shown += map(_field, kvs)
                taken += size
                self._take(size, taken)
                if reading.ended:
                    break
                await asyncio.sleep(0)
            cut = not chosen.count_only and not chosen.filtered and reading.counted > len(found) + len(shown)
            if 0 < chosen.limit < len(shown):
                shown, cut = shown[: chosen.limit], True
            elif found:
                kept, limited = await _finished(chosen, found)
                cut = cut or limited
                for start in range(0, len(kept), STRETCH_KEYS):
                    async with self._face.backend.pace:
                        shown += map(_field, kept[start : start + STRETCH_KEYS])
                    await asyncio.sleep(0)
            return shown, cut, taken
        except BaseException:
            self._give_back(taken)
            raise

    def _take(self, size: int, taken: int) -> None:
        self.held += size
        if taken > MAX_RANGE_BYTES:
            raise ResultTooLarge(
                f"the range has more than {MAX_RANGE_BYTES >> 20} MiB; ask for less with a limit, or use RangeStream"
            )
        if self.held > MAX_HELD_BYTES:
            raise TooManyRequests("this node holds as many answers to large ranges as it may; try again")

    def _give_back(self, size: int) -> None:
        self.held -= size

    async def stream(self, shard: Descriptor, request: pb.RangeRequest, context: Any) -> AsyncIterator[bytes]:
        """``RangeStreamResponse``s: header, count and more come in the last (etcd 15). Raises as `answer`."""
        chosen = selection(request)
        if request.sort_order != pb.RangeRequest.NONE and chosen.sorted:
            raise EtcdError("UNIMPLEMENTED", "RangeStream does not support custom sort orders")
        if chosen.filtered:
            raise EtcdError("UNIMPLEMENTED", "RangeStream does not support revision filters")
        # Without an order the target says nothing here: a stream comes in the order of keys.
        chosen = Selection(chosen.limit, chosen.keys_only, chosen.count_only)
        backend = self._face.backend
        store = await backend.current(shard, self._face.timeout(context), serializable=request.serializable)
        revision = store.revision
        reading = _Reading(lambda: backend.pump.store(shard.group), request, chosen)
        loop = asyncio.get_running_loop()
        chunk, sent = b"", 0
        try:
            while True:
                left = 0 if chosen.count_only else (chosen.limit - sent if chosen.limit > 0 else STRETCH_KEYS)
                async with backend.pace:
                    kvs = reading.stretch(left)
                if kvs:
                    if chunk:
                        timer = loop.call_later(HOLD_SECONDS, reading.release)
                        yield message_field(b"\x0a", chunk)
                        timer.cancel()
                    chunk = b"".join(map(_field, kvs))
                    sent += len(kvs)
                if reading.ended:
                    break
                await asyncio.sleep(0)
        except NebulaError as error:
            error.group = shard.group
            raise
        finally:
            reading.release()
        more = b"\x18\x01" if not chosen.count_only and reading.counted > sent else b""
        prefix = self._face.prefix(shard.group, revision)
        yield message_field(b"\x0a", b"".join((prefix, chunk, more, number_field(b"\x20", reading.counted))))


async def _finished(chosen: Selection, found: Sequence[KeyValue]) -> tuple[Sequence[KeyValue], bool]:
    """As `Selection.finish`; many keys in a thread: 200,000 take it up to 0.5 s."""
    if len(found) <= STRETCH_KEYS:
        return chosen.finish(found)
    return await asyncio.to_thread(chosen.finish, found, beside=True)


def _field(kv: KeyValue) -> bytes:
    """A key as a field of ``RangeResponse``."""
    return message_field(b"\x12", key_value(kv))

"""Newest records by key, in memory: what keeps a put or a get of a warm key off the engine.

They are kept as the bytes of their C rows. To decode one costs a microsecond; as tuples the collector looked at each of
them whenever it came by: 15 ms of the loop at once for 45,000 records, 60 for 200,000, with `gc.freeze` and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from nebuladb.kv.rows import RECORD_FLAGS, TOMBSTONE

ENTRY_OVERHEAD: Final = 160
"""Bytes of a dict slot and of two objects' heads, roughly."""


class RecordShare:
    """What the caches of all shards on a node may hold together: a hot shard gets what idle ones don't use.

    When their young generations together are half the bound, all turn at once.
    """

    __slots__ = ("_caches", "_half", "_old", "limit", "room")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._half = limit // 2
        self.room = self._half
        """What the young generations may still grow."""
        self._old = 0
        self._caches: dict[RecordCache, None] = {}

    @property
    def used(self) -> int:
        """Bytes held, about: a deleted record counts until the next turn."""
        return self._old + self._half - self.room

    def join(self, cache: RecordCache) -> None:
        """From now on `cache` turns with the others."""
        self._caches[cache] = None

    def leave(self, cache: RecordCache) -> None:
        """`cache` is empty and unused. Idempotent. Its bytes count until the turn after the next."""
        self._caches.pop(cache, None)

    def turn(self) -> None:
        """Drop every old generation; the young ones grow old."""
        self._old, self.room = self._half - self.room, self._half
        for cache in self._caches:
            cache.turn()


class RecordCache:
    """One shard's part. Two generations: what is used moves to the young one; the old one is dropped whole.

    It holds nothing that the engine doesn't: the store fills it only after a write returned.
    """

    __slots__ = ("_old", "_share", "young")

    def __init__(self, share: RecordShare) -> None:
        self._share = share
        share.join(self)
        self.young: dict[bytes, bytes] = {}
        """Public for one look-up without a call; a miss there means `get`."""
        self._old: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """The newest record of `key`, encoded, if it is here. A tombstone never is."""
        data = self.young.get(key)
        if data is None:
            data = self._old.get(key)
            if data is not None:
                self.put(key, data)
        return data

    def put(self, key: bytes, data: bytes) -> None:
        """Remember `data`, a live record, as the newest of `key`, which the young generation doesn't hold."""
        self.young[key] = data
        share = self._share
        share.room -= len(key) + len(data) + ENTRY_OVERHEAD
        if share.room < 0:
            share.turn()

    def update(self, keys: Iterable[bytes], rows: Mapping[bytes, bytes | None], current: bytes) -> None:
        """Take over what an apply wrote: of each of `keys` the newest record, which is in `rows` under `current` + key;
        deleted ones are forgotten."""
        young = self.young
        share = self._share
        room = share.room
        for key in keys:
            data = rows[current + key]
            if data is None:
                continue
            if not data[RECORD_FLAGS] & TOMBSTONE:
                known = young.get(key)
                young[key] = data
                # An overwrite takes no more room: counted again, each turn would come before half the keys were seen.
                if known is None:
                    room -= len(key) + len(data) + ENTRY_OVERHEAD
                else:
                    room -= len(data) - len(known)
            else:
                young.pop(key, None)
                self._old.pop(key, None)
        share.room = room
        if room < 0:
            share.turn()

    def turn(self) -> None:
        """See `RecordShare.turn`."""
        self._old, self.young = self.young, {}

    def close(self) -> None:
        """Hold nothing any more."""
        self._old, self.young = {}, {}
        self._share.leave(self)

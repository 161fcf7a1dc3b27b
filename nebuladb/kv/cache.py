"""Newest records by key, in memory: what keeps a put or a get of a warm key off the engine."""

from __future__ import annotations

from typing import Final

from nebuladb.kv.rows import Record

ENTRY_OVERHEAD: Final = 400
"""Bytes of a dict slot, a tuple and its integers, roughly."""


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
        self.young: dict[bytes, Record] = {}
        """Public for one look-up without a call; a miss there means `get`."""
        self._old: dict[bytes, Record] = {}

    def get(self, key: bytes) -> Record | None:
        """The newest record of `key`, if it is here. A tombstone never is."""
        record = self.young.get(key)
        if record is None:
            record = self._old.get(key)
            if record is not None:
                self.put(key, record)
        return record

    def put(self, key: bytes, record: Record) -> None:
        """Remember `record`, a live one, as the newest of `key`, which the young generation doesn't hold."""
        self.young[key] = record
        share = self._share
        share.room -= len(key) + len(record.value) + ENTRY_OVERHEAD
        if share.room < 0:
            share.turn()

    def update(self, records: dict[bytes, Record]) -> None:
        """Take over what an apply wrote; deleted keys are forgotten."""
        young = self.young
        share = self._share
        room = share.room
        for key, record in records.items():
            if record.version:
                known = young.get(key)
                young[key] = record
                # An overwrite takes no more room: counted again, each turn would come before half the keys were seen.
                if known is None:
                    room -= len(key) + len(record.value) + ENTRY_OVERHEAD
                else:
                    room -= len(record.value) - len(known.value)
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

"""Newest records by key, in memory: what keeps a put or a get of a warm key off the engine."""

from __future__ import annotations

from typing import Final

from nebuladb.kv.rows import Record

ENTRY_OVERHEAD: Final = 400
"""Bytes of a dict slot, a tuple and its integers, roughly."""


class RecordCache:
    """Two generations: what is used moves to the young one; when that is half the bound, the old one is dropped whole.

    It holds nothing that the engine doesn't: the store fills it only after a write returned.
    """

    __slots__ = ("_half", "_old", "_room", "young")

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._room = self._half
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
        """Remember `record`, a live one, as the newest of `key`."""
        self.young[key] = record
        # An overwrite counts again: the young generation turns a little early, and a put costs no second look-up.
        self._room -= len(key) + len(record.value) + ENTRY_OVERHEAD
        if self._room < 0:
            self._turn()

    def update(self, records: dict[bytes, Record]) -> None:
        """Take over what an apply wrote; deleted keys are forgotten."""
        young = self.young
        room = self._room
        for key, record in records.items():
            if record.version:
                young[key] = record
                room -= len(key) + len(record.value) + ENTRY_OVERHEAD
            else:
                young.pop(key, None)
                self._old.pop(key, None)
        self._room = room
        if room < 0:
            self._turn()

    def _turn(self) -> None:
        self._old, self.young, self._room = self.young, {}, self._half

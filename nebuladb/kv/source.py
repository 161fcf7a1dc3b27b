"""Where the state machine reads rows from: the engine, or a draft over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from nebuladb.kv.cache import RecordCache
from nebuladb.kv.rows import Keys, Record, decode_record
from nebuladb.storage.engine import Reader


class Source(Protocol):
    """Rows of one (group, generation)."""

    keys: Keys

    def get(self, row: bytes) -> bytes | None:
        """The value of a row."""
        ...

    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows in [low, high) in order. To be exhausted or closed before anything is written."""
        ...

    def newest(self, key: bytes) -> Record | None:
        """The newest record of a user's key, perhaps a tombstone, perhaps of an unpublished revision."""
        ...


class EngineSource:
    """What the engine holds, newest records through the cache."""

    __slots__ = ("_cache", "_current", "_reader", "keys")

    def __init__(self, reader: Reader, keys: Keys, cache: RecordCache) -> None:
        self.keys = keys
        self._reader = reader
        self._cache = cache
        self._current = keys.current

    def get(self, row: bytes) -> bytes | None:
        return self._reader.get(row)

    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._reader.scan(low, high)

    def newest(self, key: bytes) -> Record | None:
        record = self._cache.young.get(key) or self._cache.get(key)
        if record is None:
            data = self._reader.get(self._current + key)
            if data is not None:
                record = decode_record(data)
                if record.version:
                    self._cache.put(key, record)
        return record


def close(rows: Iterator[tuple[bytes, bytes]]) -> None:
    """Let go of an engine iterator that wasn't exhausted (S24)."""
    closer = getattr(rows, "close", None)
    if closer is not None:
        closer()

"""Where the state machine reads rows from: the engine, or a draft over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from nebuladb.kv.cache import RecordCache
from nebuladb.kv.loans import Loans, Misses
from nebuladb.kv.rows import Keys, Record, decode_record
from nebuladb.storage.engine import Engine, Reader


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
    """What the engine holds in memory, newest records through the cache, and what is on loan.

    `get` and `newest` raise `Misses` for a row that takes the disk.
    """

    __slots__ = ("_cache", "_cached", "_current", "_engine", "keys", "loans")

    def __init__(self, engine: Engine, keys: Keys, cache: RecordCache) -> None:
        self.keys = keys
        self.loans = Loans()
        self._engine = engine
        self._cached = engine.get_cached
        self._cache = cache
        self._current = keys.current

    def get(self, row: bytes) -> bytes | None:
        rows = self.loans.rows
        if row in rows:  # first: what the engine has in memory it copies
            return rows[row]
        known, data = self._cached(row)
        return data if known else self._borrowed(row)

    def scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._engine.scan(low, high)

    def newest(self, key: bytes) -> Record | None:
        data = self._cache.young.get(key) or self._cache.get(key)
        if data is not None:
            return decode_record(data)
        row = self._current + key
        known, data = self._cached(row)
        if not known:
            data = self._borrowed(row)
        if data is None:
            return None
        record = decode_record(data)
        if record.version:
            self._cache.put(key, data)
        return record

    def misses(self, row: bytes) -> bool:
        """Whether `get` would raise."""
        return not self._cached(row)[0] and row not in self.loans.rows

    def holds(self, key: bytes) -> bool:
        """Whether the record of `key` is in the cache."""
        return self._cache.get(key) is not None

    def _borrowed(self, row: bytes) -> bytes | None:
        try:
            return self.loans.rows[row]
        except KeyError:
            raise Misses((row,)) from None


class SnapshotSource:
    """What an engine's snapshot holds, from the disk where it must: for work in slices that has warmed its rows."""

    __slots__ = ("_reader", "get", "keys", "scan")

    def __init__(self, reader: Reader, keys: Keys) -> None:
        self.keys = keys
        self.get = reader.get
        self.scan = reader.scan
        self._reader = reader

    def newest(self, key: bytes) -> Record | None:
        data = self._reader.get(self.keys.current + key)
        return None if data is None else decode_record(data)


def close(rows: Iterator[tuple[bytes, bytes]]) -> None:
    """Let go of an engine iterator that wasn't exhausted (S24)."""
    closer = getattr(rows, "close", None)
    if closer is not None:
        closer()

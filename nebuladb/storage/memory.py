"""An engine in memory, which does on demand what a crash or a bad disk may do. For the simulator and tests.

It loses what RocksDB may lose (the writes since the last sync, from some write on), and it tears nothing that RocksDB
keeps whole (a batch).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Final, NoReturn

from nebuladb.env import Rng
from nebuladb.errors import Corruption, DiskFull, StoreClosed, StoreError, WriteStalled
from nebuladb.storage.engine import DELETE, IDENTITY_BYTES, PUT, Batch

ALWAYS: Final = 1 << 62
"""For `MemoryEngine.fail`: until `heal`."""


class Fault(Enum):
    """What can be ordered with `MemoryEngine.fail`."""

    STALL = "a write is refused for now (WriteStalled); nothing happened"
    FULL = "a write finds no space (DiskFull); nothing happened. With a WAL the engine is then broken until reopened"
    SYNC = "a sync fails (StoreError), what it was to make durable isn't, and the engine is broken until reopened"
    FLUSH = "a flush fails, likewise"
    CRAMPED = "a compaction finds no room to compact in"


class _Table:
    """A sorted map. Views share it until the engine changes it; then the engine goes on with a copy."""

    __slots__ = ("keys", "rows", "views")

    def __init__(self, rows: dict[bytes, bytes], keys: list[bytes]) -> None:
        self.rows = rows
        self.keys = keys
        self.views = 0


class MemoryEngine:
    """See `Engine`. A write costs O(log n) and a memmove, a scan O(log n + pairs taken).

    `position` counts writes; `make_durable(position)` is what a simulator that lets time pass between the start and
    the end of a sync calls in place of `sync` or `flush`, with the position at the start.
    """

    identity = bytes(IDENTITY_BYTES)

    def __init__(self, *, wal: bool) -> None:
        self.wal = wal
        self.position = 0
        self.durable = 0
        """Writes that a crash can't take."""
        self._table = _Table({}, [])
        self._undo: deque[list[tuple[bytes, bytes | None]]] = deque()
        self._faults: Counter[Fault] = Counter()
        self._damaged: set[bytes] = set()
        self.waste: dict[bytes, int] = {}
        """Without a WAL: keys that were deleted and take room until they are compacted; each with its deletion's
        position."""
        self._cold: Callable[[bytes], bool] | None = None
        self._state = ""
        """Empty, or why the engine refuses everything."""

    def get(self, key: bytes) -> bytes | None:
        if self._state or key in self._damaged:
            self._refuse()
        return self._table.rows.get(key)

    def get_cached(self, key: bytes) -> tuple[bool, bytes | None]:
        if self._cold is not None and self._cold(key):
            self._check()
            return False, None
        return True, self.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def chill(self, cold: Callable[[bytes], bool] | None) -> None:
        """From now on the keys of which `cold` says so are not in memory; it may say otherwise the next time."""
        self._cold = cold

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self._check()
        return _walk(self, self._table, low, high, reverse=reverse)

    def write(self, batch: Batch) -> None:
        self._check()
        if self._faults:
            self._suffer()
        table = self._own_table()
        rows, keys = table.rows, table.keys
        undo: list[tuple[bytes, bytes | None]] = []
        for kind, key, value in batch.operations:
            if kind == PUT:
                old = rows.get(key)
                undo.append((key, old))
                if old is None:
                    _add(keys, key)
                rows[key] = value
                if self._damaged:
                    self._damaged.discard(key)
            elif kind == DELETE:
                if key in rows:
                    undo.append((key, rows.pop(key)))
                    del keys[bisect_left(keys, key)]
                    if not self.wal:
                        self.waste[key] = self.position + 1
            else:
                first, last = bisect_left(keys, key), bisect_left(keys, value)
                undo.extend([(gone, rows.pop(gone)) for gone in keys[first:last]])
                if not self.wal:
                    self.waste.update(dict.fromkeys(keys[first:last], self.position + 1))
                del keys[first:last]
        self._undo.append(undo)
        self.position += 1

    def sync(self) -> None:
        self._check()
        if not self.wal:
            raise StoreError("an engine without WAL has nothing to sync; flush it")
        self._persist(Fault.SYNC)

    def flush(self) -> None:
        self._check()
        self._persist(Fault.FLUSH)

    def compact(self, spans: Sequence[tuple[bytes, bytes]], stop: Callable[[], bool]) -> bool:
        self._check()
        if stop() or self._strikes(Fault.CRAMPED):
            return False
        for key in [key for key, position in self.waste.items() if position <= self.durable]:
            if any(low <= key < high for low, high in spans):
                del self.waste[key]
        return True

    def deleted(self) -> list[tuple[bytes, bytes]]:
        flushed = [key for key, position in self.waste.items() if position <= self.durable]
        return [(min(flushed), max(flushed) + b"\0")] if flushed else []

    def trouble(self) -> str:
        return ""

    def snapshot(self, spans: Sequence[tuple[bytes, bytes]] = ()) -> MemorySnapshot:
        self._check()
        return MemorySnapshot(self, self._table)

    def close(self) -> None:
        self._state = "the database is closed"

    def make_durable(self, position: int) -> None:
        """From now on a crash keeps the first `position` writes at least."""
        while self.durable < position:
            self._undo.popleft()
            self.durable += 1

    def crash(self, rng: Rng) -> MemoryEngine:
        """The engine that opens after a crash now: it lost the writes from some point after `durable` on, whole
        batches all. This one is closed. Damaged rows stay damaged; ordered faults are gone."""
        kept = rng.randrange(self.durable, self.position + 1)
        table = self._own_table()
        for _ in range(self.position - kept):
            for key, value in reversed(self._undo.pop()):
                if value is not None:
                    if key not in table.rows:
                        _add(table.keys, key)
                    table.rows[key] = value
                elif table.rows.pop(key, None) is not None:
                    del table.keys[bisect_left(table.keys, key)]
        heir = MemoryEngine(wal=self.wal)
        heir.position = heir.durable = kept
        heir._table = _Table(table.rows, table.keys)
        heir._cold = self._cold
        heir._damaged = self._damaged & table.rows.keys()
        heir.waste = {key: position for key, position in self.waste.items() if position <= kept}
        self._table = _Table({}, [])
        self._state = "the machine crashed"
        return heir

    def sync_file(self) -> int | None:
        return None

    def fail(self, fault: Fault, times: int = 1) -> None:
        """Order `fault` for the next `times` operations that it can strike."""
        self._faults[fault] = times

    def heal(self) -> None:
        """Cancel all ordered faults. A broken engine stays broken."""
        self._faults.clear()

    def flip(self, key: bytes, bit: int, *, detected: bool) -> None:
        """Flip one bit of the stored value of `key`. `detected`: where RocksDB's checksums see it (on disk), so that
        readers get `Corruption`; else where nothing sees it (in memory), so that they get the damaged bytes."""
        table = self._own_table()
        value = bytearray(table.rows[key])
        value[bit // 8] ^= 1 << bit % 8
        table.rows[key] = bytes(value)
        if detected:
            self._damaged.add(key)

    def _suffer(self) -> None:
        """Raise what was ordered for a write, if anything."""
        if self._strikes(Fault.STALL):
            raise WriteStalled
        if self._strikes(Fault.FULL):
            self._state = "an append failed" if self.wal else ""
            raise DiskFull

    def _refuse(self) -> NoReturn:
        """A row is damaged, or the engine refuses everything."""
        self._check()
        raise Corruption("Corruption: block checksum mismatch")

    def _strikes(self, fault: Fault) -> bool:
        if self._faults[fault] <= 0:
            return False
        self._faults[fault] -= 1
        return True

    def _persist(self, fault: Fault) -> None:
        if self._strikes(fault):
            self._state = f"a {fault.name.lower()} failed"
            raise StoreError(f"IO error: {self._state}")
        self.make_durable(self.position)

    def _check(self) -> None:
        if self._state:
            raise StoreError(self._state)

    def _own_table(self) -> _Table:
        if self._table.views:
            self._table = _Table(dict(self._table.rows), list(self._table.keys))
        return self._table


class MemorySnapshot:
    """See `Snapshot`."""

    def __init__(self, engine: MemoryEngine, table: _Table) -> None:
        self._engine = engine
        self._table: _Table | None = table
        table.views += 1

    def get(self, key: bytes) -> bytes | None:
        table = self._open()
        if key in self._engine._damaged:
            self._engine._refuse()
        return table.rows.get(key)

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return _walk(self._engine, self._open(), low, high, reverse=reverse)

    def close(self) -> None:
        if self._table is not None:
            self._table.views -= 1
            self._table = None

    def _open(self) -> _Table:
        if self._table is None:
            raise StoreClosed("the snapshot is closed")
        self._engine._check()
        return self._table


def _add(keys: list[bytes], key: bytes) -> None:
    if not keys or keys[-1] < key:
        keys.append(key)
    else:
        insort(keys, key)


def _walk(
    engine: MemoryEngine, table: _Table, low: bytes, high: bytes, *, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    rows, keys = table.rows, table.keys
    first, last = bisect_left(keys, low), bisect_left(keys, high)
    table.views += 1
    try:
        for position in range(last - 1, first - 1, -1) if reverse else range(first, last):
            key = keys[position]
            if engine._state or key in engine._damaged:
                engine._refuse()
            yield key, rows[key]
    finally:
        table.views -= 1

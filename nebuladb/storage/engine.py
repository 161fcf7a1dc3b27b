"""The seam to durable bytes: one ordered map of bytes to bytes, written in atomic batches.

`RocksEngine` (``rocks.py``, the one importer of rocksdict) and `MemoryEngine` (``memory.py``, for simulation) implement
it; ``conformance.py`` is the suite that both must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

PUT: Final = 0
DELETE: Final = 1
DELETE_RANGE: Final = 2
IDENTITY_BYTES: Final = 8


class Batch:
    """Operations that become visible, and durable, all or none, in their order.

    It survives a write that was refused with `WriteStalled`: writing the same batch again is the retry.
    """

    __slots__ = ("operations", "size")

    def __init__(self) -> None:
        self.operations: list[tuple[int, bytes, bytes]] = []
        self.size = 0
        """Bytes of keys and values so far."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self.operations.append((PUT, key, value))
        self.size += len(key) + len(value)

    def delete(self, key: bytes) -> None:
        """Remove `key` if it is there."""
        self.operations.append((DELETE, key, b""))
        self.size += len(key)

    def delete_range(self, low: bytes, high: bytes) -> None:
        """Remove every key in [low, high)."""
        self.operations.append((DELETE_RANGE, low, high))
        self.size += len(low) + len(high)

    def __bool__(self) -> bool:
        return bool(self.operations)


class Reader(Protocol):
    """A view of the map: the engine itself (live), or a snapshot of it."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`. Raises `Corruption` or `StoreError`, never answers with less than was written."""
        ...

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with low <= key < high in key order. To be exhausted or closed within the caller's turn (S24).

        Raises `Corruption` at its end if the engine's iterator stopped early; an iterator that merely ends is not
        trusted (rocksdict ends silently at a damaged block).
        """
        ...


class Snapshot(Reader, Protocol):
    """A view that later writes don't change. Close it: the engine can't close while it lives."""

    def close(self) -> None:
        """Release it. Idempotent."""
        ...


class Engine(Reader, Protocol):
    """An open database. All methods but `flush`, `compact`, `sync` and `get_many` are called from one thread. They
    don't wait for the disk to write; `get` and scans may wait for it to read."""

    @property
    def identity(self) -> bytes:
        """IDENTITY_BYTES that no other database has, the same as long as this one lives; no client can know them."""
        ...

    def write(self, batch: Batch) -> None:
        """Apply `batch` atomically; visible at once, durable later. Raises `WriteStalled` (nothing happened; retry
        the same batch), `DiskFull`, `Corruption` or `StoreError` (the store is broken; stop)."""
        ...

    def get_cached(self, key: bytes) -> tuple[bool, bytes | None]:
        """(True, value or None) if that can be told from memory alone; (False, None) if it takes the disk."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order. Blocking; for a thread. Raises as `get`."""
        ...

    def sync(self) -> None:
        """Make durable every write that returned before this call began (the WAL). Blocking; for a thread.
        Never retried after an error (S33). Raises `StoreError` on an engine without WAL."""
        ...

    def sync_file(self) -> int | None:
        """A descriptor of which an `fdatasync`, begun now, is as good as `sync`, if there is such a one; it stays open
        until the next `sync`. None: call `sync`."""
        ...

    def flush(self) -> None:
        """Write every write that returned before this call began into tables and make those durable. Blocking; for a
        thread. This is what makes an engine without WAL durable."""
        ...

    def compact(self, spans: Sequence[tuple[bytes, bytes]], stop: Callable[[], bool]) -> bool:
        """Rewrite what was flushed of `spans`, [low, high) each, so that what was deleted there takes no room any more.
        Blocking, and for long; for a thread, one at a time. It goes step by step, and each step needs room for what it
        rewrites. Returns False if something is left, because `stop` said so or for want of room."""
        ...

    def deleted(self) -> list[tuple[bytes, bytes]]:
        """Where rows were deleted, as far as tables tell: spans, [low, high) each, of which some may be compacted."""
        ...

    def trouble(self) -> str:
        """What its background work met last that may be why it takes no writes; empty: nothing that is known."""
        ...

    def snapshot(self, spans: Sequence[tuple[bytes, bytes]] = ()) -> Snapshot:
        """A consistent view of now. With `spans`, [low, high) each, every scan must lie within one of them: then none
        walks over what was deleted behind its end. (An empty range before 150,000 tombstones took 280 ms.)"""
        ...

    def close(self) -> None:
        """Close it, without any promise of durability beyond `sync` and `flush`. Idempotent."""
        ...

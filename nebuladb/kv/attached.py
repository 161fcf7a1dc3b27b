"""The keys of one lease, of which there may be a million."""

from __future__ import annotations

from collections.abc import Iterator

from nebuladb.storage.engine import Engine


class Attached:
    """Those of now, over an engine snapshot. Make and close it in the engine's thread; `read` may run in another. Close
    it soon: it keeps old tables on the disk."""

    def __init__(self, engine: Engine, low: bytes, high: bytes) -> None:
        """Bounds of the lease's K rows (`Keys.attached`)."""
        self._view = engine.snapshot([(low, high)])
        self._rows = self._view.scan(low, high)
        self._key_at = len(low)

    def read(self) -> Iterator[bytes]:
        """All of them, ascending. Once only. Raises `Corruption` or `StoreError`."""
        return (row[self._key_at :] for row, _ in self._rows)

    def close(self) -> None:
        """Let go of the engine. Idempotent."""
        self._view.close()

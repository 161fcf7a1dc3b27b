"""A read of more than one turn (S24): one revision, kept readable on this node whatever is compacted meanwhile."""

from __future__ import annotations

from nebuladb.errors import Unavailable
from nebuladb.kv.rows import Keys
from nebuladb.kv.source import SnapshotSource
from nebuladb.kv.view import Page, page
from nebuladb.storage.engine import Snapshot


class Pin:
    """Made by `Store.pin`, to be closed by its owner. It holds an engine snapshot, not the replicated floor.

    The store closes it too, when it is old or when the store is closed; then `scan` raises `Unavailable`.
    """

    def __init__(self, snapshot: Snapshot, keys: Keys, revision: int, index: int) -> None:
        self.revision = revision
        """What every page reads."""
        self.index = index
        """The applied index when it was made: its age."""
        self.closed = False
        self._snapshot = snapshot
        self._source = SnapshotSource(snapshot, keys)

    def scan(
        self,
        key: bytes,
        end: bytes = b"\0",
        *,
        limit: int = 1024,
        max_bytes: int = 1 << 20,
        max_rows: int = 4096,
        keys_only: bool = False,
    ) -> Page:
        """As `Store.scan`, at the pinned revision. Raises `Unavailable` or `Corruption`."""
        if self.closed:
            raise Unavailable("the scan took too long; start it again from its last key")
        return page(
            self._source, self._source.keys.span(key, end), self.revision, limit=limit, max_bytes=max_bytes,
            max_rows=max_rows, keys_only=keys_only,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the snapshot. Idempotent."""
        if not self.closed:
            self.closed = True
            self._snapshot.close()

"""A read of more than one turn (S24): one revision, kept readable on this node whatever is compacted meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from nebuladb.env import probe
from nebuladb.errors import Unavailable
from nebuladb.kv.rows import Record
from nebuladb.kv.source import SnapshotSource
from nebuladb.kv.trail import Trail
from nebuladb.kv.view import STRETCH_BYTES, Page, page
from nebuladb.kv.voids import MIN_ROWS, Voids


class Pin:
    """Made by `Store.pin`, to be closed by its owner. While it is open the store deletes nothing that its revision
    shows, though the replicated floor moves on. It holds disk space and no memory: an engine snapshot would keep the
    memtables of its day.

    The store closes it too, when it is old, when a key that it may show was deleted, compacted and made anew, or
    removed by a transaction that met thousands of such, or when the store is closed; then `scan` raises `Unavailable`.
    """

    def __init__(self, source: SnapshotSource, revision: int, index: int, voids: Voids) -> None:
        self.revision = revision
        """What every page reads."""
        self.index = index
        """The applied index when it was made: its age."""
        self.closed = False
        self._source = source
        self._voids = voids
        self._trail = Trail()

    def scan(
        self,
        key: bytes,
        end: bytes = b"\0",
        *,
        limit: int = 1024,
        max_bytes: int = 1 << 20,
        max_rows: int = 4096,
        keys_only: bool = False,
        keep: Callable[[Record], bool] | None = None,
        max_read: int = STRETCH_BYTES,
    ) -> Page:
        """As `Store.scan`, at the pinned revision, and no further than some `max_read` bytes looked at: to count a
        thousand keys is to read their values. Raises `Unavailable` or `Corruption`."""
        if self.closed:
            raise Unavailable("the scan took too long; start it again from its last key")
        keys, voids = self._source.keys, self._voids
        low, high = keys.span(key, end)
        low = voids.behind(low, self.revision)
        found = page(
            self._source, (low, high), self.revision, limit=limit, max_bytes=max_bytes, max_rows=max_rows,
            keys_only=keys_only, keep=keep, max_read=max_read, trail=self._trail,
        )  # fmt: skip
        if found.passed >= MIN_ROWS and self.revision == voids.revision:
            if not found.counted:
                voids.found(low, keys.current + found.cursor if found.cursor else high)
            elif keep is None:
                voids.found(low, keys.current + found.kvs[0].key)
        return found

    def forget(self, revision: int) -> None:
        """A tombstone at `revision`, below the floor, is gone or was taken no notice of (`Draft.forgotten`)."""
        if self.revision < revision and not self.closed:
            probe("pin cut off")
            self.close()

    def close(self) -> None:
        """Hold nothing any more. Idempotent."""
        self.closed = True

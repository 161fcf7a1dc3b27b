"""Which file a database's WAL goes to, so that it can be synced without RocksDB, and so without a thread of ours.

A sync by RocksDB is a call that waits. The kernel also syncs by itself, and tells when it has
(`nebuladb.storage.kernel_sync`), but it wants to know the file, and RocksDB begins a new one whenever a memtable is
full. It does so amid a write, and then counts up its "super version", as for each other change of its memtables and
tables. So while that number stands, the file is the same. After it has moved one sync is RocksDB's again, which makes
the old files durable, and the name of the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nebuladb.errors import StoreError
from nebuladb.storage.wal import wal_files


class Look(NamedTuple):
    """The newest WAL, open, and the version of the database while it is that."""

    file: int
    version: int


class WalFile:
    """Of the database in `directory`, whose number `version` gives.

    Invariant: while the version is that of the last look, all that was written and isn't durable is in the look's file,
    and the file's name is durable. For each look is followed by a sync by RocksDB: what was written before that sync is
    durable, whatever files it went to, and what came after it went to this one (S1, S2).
    """

    def __init__(self, directory: Path, version: Callable[[], int | None]) -> None:
        self._directory = directory
        self._version = version
        self._current: Look | None = None

    def sync(self, by_engine: Callable[[], None]) -> None:
        """Let RocksDB sync. In a thread, while the loop may go on writing; what it raises goes on."""
        look = self._look()
        try:
            by_engine()
        except BaseException:
            _close(look)
            raise
        old, self._current = self._current, look
        _close(old)

    def descriptor(self) -> int | None:
        """The file by whose `fdatasync` all that was written becomes durable, or None: then only `sync` does it."""
        current = self._current
        return current.file if current is not None and current.version == self._version() else None

    def close(self) -> None:
        """Nobody syncs any more, and the database is asked no more."""
        old, self._current = self._current, None
        self._version = _unknown
        _close(old)

    def _look(self) -> Look | None:
        """None if it can't be told now which file it is, which costs no more than a sync by RocksDB the next time."""
        version = self._version()
        if version is None:
            return None
        try:
            file = os.open(wal_files(self._directory)[-1], os.O_RDWR | os.O_CLOEXEC)
        except (IndexError, OSError, StoreError):
            return None
        look = Look(file, version)
        if self._version() != version:
            _close(look)
            return None
        return look


def _unknown() -> None:
    """The version of a database that is closed."""


def _close(look: Look | None) -> None:
    """A WAL that RocksDB deleted takes its room on the disk as long as somebody holds it."""
    if look is not None:
        os.close(look.file)

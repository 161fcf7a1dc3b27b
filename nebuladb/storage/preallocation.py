"""Zeros ahead of where RocksDB writes its log, so that a sync has nothing to tell the file system's own journal.

To make a file durable that grew, a sync also writes down its new size and which blocks it has, which takes the journal
of ext4 or xfs several turns of the disk more. Where size and blocks are there already, only the data goes: that is why
etcd writes its WAL into files that it filled before (``server/storage/wal/file_pipeline.go``). RocksDB reserves blocks,
but not the size, and blocks that were never written have to be marked when they are. It could overwrite files of its
own past; docs/adr/0004 says why ours doesn't.

Hence zeros lie behind the last record of a WAL: never a record, so an end (`nebuladb.storage.wal`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

ZEROS: Final = bytes(256 << 10)
"""What is written at a time. The next sync takes it along, in half a millisecond."""
LOW: Final = len(ZEROS) // 4
"""Bytes of zeros that are left when more are written: larger than most batches."""
ROW_BYTES: Final = 16
"""About what a row has in the WAL beside its key and value."""
BATCH_BYTES: Final = 64
"""About what a batch has beside its rows."""


class Preallocation:
    """Of the newest WAL in `directory`. For the one thread that writes to the database: nobody else appends to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = -1
        self._name = ""
        """Of `_file`."""
        self._room = 0
        """Bytes of zeros that are left, as well as one can tell from outside. It decides when, and never where, more
        are written."""

    def wrote(self, rows: int, size: int) -> None:
        """A batch of so many rows was written, whose keys and values have `size` bytes."""
        self._room -= size + rows * ROW_BYTES + BATCH_BYTES
        if self._room < LOW:
            self._room = max(self._room, 0) + len(ZEROS)
            # A full disk, say: syncs are slower then, and that writes fail is RocksDB's to tell.
            with contextlib.suppress(OSError):
                self._extend()

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file, self._name = -1, ""

    def _extend(self) -> None:
        logs = [name for name in os.listdir(self._directory) if name.endswith(".log")]
        newest = max(logs, key=lambda name: (len(name), name), default="")
        if newest != self._name:
            self.close()
            self._file = os.open(self._directory / newest, os.O_WRONLY | os.O_CLOEXEC)
            self._name = newest
        # Behind the file's end, which is behind all that RocksDB has written, and where it never seeks to.
        os.pwrite(self._file, ZEROS, os.fstat(self._file).st_size)

"""Zeros ahead of where RocksDB writes its log, so that a sync has nothing to tell the file system's own journal.

To make a file durable that grew, a sync also writes down its new size and its blocks: several more turns of the disk
for the journal of ext4 or xfs. Where both are there already, only the data goes; that is why etcd writes its WAL into
files that it filled before (``server/storage/wal/file_pipeline.go``). RocksDB reserves blocks, but not the size, and a
block has to be marked when it is first written. It could overwrite files of its own past; docs/adr/0004 says why ours
doesn't.

Hence zeros lie behind the last record of a WAL: never a record, so an end (`nebuladb.storage.wal`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from nebuladb.errors import StoreError
from nebuladb.storage.wal import wal_files

ZEROS: Final = bytes(256 << 10)
"""What is written at a time. The next sync takes it along, in half a millisecond."""
LOW: Final = bytes(len(ZEROS) // 4)
"""Where so many are left no more are written: larger than most batches."""
ROW_BYTES: Final = 16
"""About what a row takes in the WAL beside its key and value."""


class Preallocation:
    """Keeps zeros at the end of the newest WAL in `directory`. For the one thread that writes to the database: nobody
    else appends to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._room = 0
        """Bytes of zeros that are left before the next look, about. The file says whether there are enough."""

    def wrote(self, rows: int, size: int) -> None:
        """A batch of so many rows was written, whose keys and values have `size` bytes."""
        self._room -= size + rows * ROW_BYTES
        if self._room < 0:
            self._room = len(LOW)
            # A full disk, say: syncs are slower then, and that writes fail is RocksDB's to tell.
            with contextlib.suppress(OSError, StoreError):
                self._extend()

    def _extend(self) -> None:
        files = wal_files(self._directory)
        if not files:
            return
        # Opened anew each time: a WAL that was deleted would take its room on the disk as long as it is held.
        file = os.open(files[-1], os.O_RDWR | os.O_CLOEXEC)
        try:
            end = os.fstat(file).st_size
            if os.pread(file, len(LOW), max(0, end - len(LOW))) != LOW:
                # Behind the file's end, which is behind all that RocksDB has written, and where it never seeks to.
                os.pwrite(file, ZEROS, end)
                self._room = len(ZEROS) - len(LOW)
        finally:
            os.close(file)

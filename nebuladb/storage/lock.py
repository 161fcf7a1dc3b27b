"""One process per data directory (S18)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from nebuladb.errors import IdentityError
from nebuladb.storage.owner import LOCK_FILE, give_open

PID_BYTES: Final = 32


class DirectoryLock:
    """Holds `path` for this process until `release`, or the process's end, however that comes."""

    def __init__(self, path: Path, *, give: bool = False) -> None:
        """Raises `IdentityError` if another process holds it, `OSError` if the directory can't be written. A lock file
        that root makes is the directory's owner's if it says `give`: a node that root runs goes on using it."""
        self._path = path
        # The file stays for ever: unlinking it would let two processes lock two files of one name.
        self._descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if give:
            give_open(self._descriptor, path)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._descriptor, PID_BYTES, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            who = f"process {owner}" if owner.isdecimal() else "another process"
            raise IdentityError(
                f"the data directory {path} is in use by another nebulad ({who}); stop that one, or give this one a "
                "directory of its own with --data-dir"
            ) from error
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let others have it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __repr__(self) -> str:
        return f"DirectoryLock({str(self._path)!r})"

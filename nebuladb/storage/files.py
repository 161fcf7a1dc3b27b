"""Small files that must survive a power cut: identity and founding documents."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from nebuladb.errors import DiskFull, StoreError

DRAFT: Final = ".tmp"
"""What `write_durably` puts behind the name of a file that isn't whole yet."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of errors that mean that there is no room: of the disk, or of whoever asks."""
TEMPORARY: Final = "nebuladb-"
"""How the names of temporary directories begin."""


def write_durably(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or, after a crash, what it held before; never a part.

    The rename is durable only with its directory, and the new bytes must be so before it. Raises `OSError`.
    """
    draft = path.with_name(path.name + DRAFT)
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def unwritten(path: Path, error: OSError) -> StoreError:
    """What to raise for a small file of a data directory that can't be written: `DiskFull` if there is no room."""
    kind = DiskFull if error.errno in FULL else StoreError
    return kind(f"data-dir: can't write {path}: {error.strerror}")


def exists(path: Path) -> bool:
    """Whether there is a file or directory at `path`. Raises `StoreError` if that can't be told: `Path.exists` takes it
    for a no, from Python 3.14 on of any error."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"data-dir: can't look at {path}: {error.strerror}") from error
    return True


def read(path: Path) -> bytes:
    """What the small file `path` of a data directory holds. Raises `StoreError` if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"data-dir: can't read {path}: {error.strerror}") from error


def temporary_directory(beside: Path) -> TemporaryDirectory[str]:
    """A new directory that goes with its context: where the system has its own, or, in a container that can write its
    data only, in `beside`. Raises `StoreError`, `DiskFull`."""
    try:
        return TemporaryDirectory(prefix=TEMPORARY)
    except OSError:
        try:
            return TemporaryDirectory(prefix=TEMPORARY, dir=beside)
        except OSError as error:
            kind = DiskFull if error.errno in FULL else StoreError
            raise kind(
                f"can't make a temporary directory, neither where the system has them nor in {beside} "
                f"({error.strerror}); set TMPDIR to a directory that can be written"
            ) from error


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name(path: Path) -> None:
    """Make the name of `path` durable, in the directory above it. Raises `OSError`.

    Who may pass through that and not read it, as below another user's, has no call for it: the name is as durable as
    the file system makes it by itself.
    """
    with suppress(PermissionError):
        sync_directory(path.parent)

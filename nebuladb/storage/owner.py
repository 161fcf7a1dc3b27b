"""Whose a data directory is: what its node could not use is named before it looks like damage, and what root makes in
it is its owner's."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nebuladb.errors import ConfigurationError
from nebuladb.storage.files import DRAFT

LOCK_FILE: Final = "LOCK"
"""Of the directory, and of each of its databases."""
DATABASES: Final = ("raft", "data")
DOCUMENTS: Final = ("identity.json", "founding.json", "joined.json", "voting")
READ: Final = re.compile(r"\d+\.(sst|log)|MANIFEST-\d+|CURRENT|IDENTITY|LOCK|CLOSED|rocksdict-config\.json")
"""Of a database; what else lies there, as its reports and a file system's lost+found, is nobody's trouble."""
WRITTEN: Final = frozenset({".log", DRAFT})
"""What is written in its place; everything else is replaced as a whole, which is a matter of its directory."""


def check_access(path: Path) -> None:
    """Raise `ConfigurationError` that names the first part of the locked data directory `path` that this process may
    not use: what a user of another name made, say."""
    effective = os.access in os.supports_effective_ids
    try:
        for file, mode in _parts(path):
            if not os.access(file, mode, effective_ids=effective):
                raise _refused(path, file)
    except OSError as error:
        raise unusable(path, error) from error


def _parts(path: Path) -> Iterator[tuple[Path, int]]:
    """What a node uses, and how. Each directory before what is in it."""
    yield path, os.R_OK | os.W_OK | os.X_OK
    names = (LOCK_FILE, *DOCUMENTS, *(name + DRAFT for name in DOCUMENTS))
    files = [path / name for name in names if (path / name).exists()]
    for database in (path / name for name in DATABASES):
        if database.is_dir():
            yield database, os.R_OK | os.W_OK | os.X_OK
            files += sorted(file for file in database.iterdir() if READ.fullmatch(file.name))
    for file in files:
        # An empty WAL is read, and removed.
        empty = file.suffix == ".log" and not file.stat().st_size
        written = (file.suffix in WRITTEN and not empty) or file.name == LOCK_FILE
        yield file, os.R_OK | (os.W_OK if written else 0)


def unusable(path: Path, error: OSError) -> ConfigurationError:
    """What to raise for the data directory `path` where `error` kept us from it."""
    if error.errno in (errno.EACCES, errno.EPERM) and os.path.lexists(path):
        return _refused(path, Path(os.fsdecode(error.filename)) if error.filename else path)
    return ConfigurationError(f"data-dir: can't use {path}: {error.strerror}")


def _refused(path: Path, file: Path) -> ConfigurationError:
    """What there isn't is refused by its directory: a `LOCK` that can't be made, say."""
    blamed = file if os.path.lexists(file) else path
    user = os.geteuid()
    with contextlib.suppress(OSError):
        found = blamed.stat()
        if found.st_uid == user:
            return ConfigurationError(
                f"data-dir: {blamed} is this user's (uid {user}), but its mode, {stat.filemode(found.st_mode)}, "
                f"doesn't let it read and write there: chmod -R u+rwX {path}"
            )
    return ConfigurationError(
        f"data-dir: {blamed} isn't this user's (uid {user}) to read and write: run as the owner of {path}, or "
        f"give all of it to the user that nebulad runs as: chown -R USER: {path}"
    )


def give(path: Path) -> None:
    """Make over to the owner of the directory `path` whatever in it is root's, if this process is root.

    That user may write there meanwhile: nothing is followed out of the directory, and nothing given that has another
    name elsewhere.
    """
    if os.geteuid() != 0:
        return
    for _, folders, files, directory in os.fwalk(path):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # it went meanwhile, or is a link
                entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                try:
                    give_open(entry, path)
                finally:
                    os.close(entry)


def give_open(descriptor: int, path: Path) -> None:
    """The same for one open file or directory in `path`."""
    found = os.fstat(descriptor)
    alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    if os.geteuid() == 0 == found.st_uid and (alone or stat.S_ISDIR(found.st_mode)):
        owner = path.stat()
        # Root may not in a container without capabilities, and can't name an owner that its user namespace doesn't
        # know; some file systems have no owners.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

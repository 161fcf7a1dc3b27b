"""Where ``get --file`` writes: a file of ours is replaced by a whole one, anything else is written as it lies there."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import IO, Final

from nebuladb.cli.draft import Draft, tidy_end

MAX_LINKS: Final = 40
"""As many as the kernel follows."""
UNREPLACEABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY})
"""The directory takes no other file, or another file system is mounted on just this one (EBUSY)."""


def write(place: str, value: bytes) -> None:
    """Write `value` into what `place` names, its links followed. Raises OSError.

    A new file, and one that is ours and has no other name, appears whole or not at all. Another user's would become
    ours, and the other names of one would go on naming the old one: those are written in place, and so is what is no
    file or can't be replaced.
    """
    name = _followed(place)
    if _replaceable(name):
        try:
            _replace(name, value)
            return
        except OSError as error:
            if error.errno not in UNREPLACEABLE:
                raise
    with _opened(name) as file:
        file.write(value)


def _followed(place: str) -> str:
    """The name at the end of the links that `place` may be the first of. One below /proc is its end: it is an open
    file, whatever has the name that it shows."""
    name = place
    for _ in range(MAX_LINKS):
        if _below_proc(name) or not os.path.islink(name):
            break
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    return name


def _below_proc(name: str) -> bool:
    return os.path.realpath(os.path.dirname(name)).startswith("/proc/")


def _replaceable(name: str) -> bool:
    """Whether nobody misses the file that has the name now, if there is one. Raises OSError."""
    if not os.path.basename(name) or _below_proc(name):
        return False
    try:
        found = os.stat(name)
    except FileNotFoundError:
        return True
    ours = found.st_uid == os.geteuid() and found.st_gid in {os.getegid(), *os.getgroups()}
    return ours and stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and os.access(name, os.W_OK)


def _replace(name: str, value: bytes) -> None:
    with tidy_end():
        draft = Draft(os.fsencode(name))
        try:
            draft.write(value)
            draft.finish(*_mode(name))
        finally:
            draft.discard()


def _mode(name: str) -> tuple[int, int]:
    """The permissions and the group of a file: those that it has, or those that a new one gets."""
    with suppress(FileNotFoundError):
        found = os.stat(name)
        return stat.S_IMODE(found.st_mode), found.st_gid
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask, -1


def _opened(name: str) -> IO[bytes]:
    """To write in place. A descriptor of ours goes on where it is: what the shell wrote there before stays."""
    folder, number = os.path.split(name)
    if os.path.realpath(folder) == f"/proc/{os.getpid()}/fd" and number.isdecimal():
        return os.fdopen(os.dup(int(number)), "wb")
    return open(name, "wb")

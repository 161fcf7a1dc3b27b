"""The regular files of a directory, in order, without following any link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

Fate = Literal["failed", "left_out"]


class Found(NamedTuple):
    """A file: where it is, and its POSIX path relative to the directory."""

    place: bytes
    path: bytes
    size: int


def walk(root: bytes, exclude: Sequence[str], odd: Callable[[bytes, str, Fate], None]) -> Iterator[Found]:
    """All regular files below `root`.

    `exclude`: shell patterns, each for a name or for a whole relative path. `odd` is told what isn't loaded: (relative
    path, why, what to count it as).
    """
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(os.path.join(root, directory)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            odd(directory or b".", error.strerror or str(error), "failed")
            continue
        below = []
        for entry in listed:
            path = directory + entry.name
            if _excluded(path, entry.name, exclude):
                continue
            try:
                state = entry.stat(follow_symlinks=False)
            except OSError as error:
                odd(path, error.strerror or str(error), "failed")
                continue
            if stat.S_ISREG(state.st_mode):
                yield Found(entry.path, path, state.st_size)
            elif stat.S_ISDIR(state.st_mode):
                below.append(path + b"/")
            else:
                odd(path, "a symbolic link" if stat.S_ISLNK(state.st_mode) else "not a regular file", "left_out")
        waiting += reversed(below)


def open_file(place: bytes) -> tuple[int, os.stat_result]:
    """A descriptor and its state; raises OSError, also if it is not a regular file any more."""
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file any more")
    return descriptor, state


def _excluded(path: bytes, name: bytes, patterns: Sequence[str]) -> bool:
    texts = (os.fsdecode(path), os.fsdecode(name))
    return any(fnmatchcase(text, pattern) for pattern in patterns for text in texts)

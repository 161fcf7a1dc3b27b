"""What the process asks of its system before it serves, and how it tells that its node was removed."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

from nebuladb.errors import ConfigurationError

EXIT_REMOVED: Final = 3
"""The exit code of a node that was removed from its cluster: whoever starts it again and again may stop."""
M_ARENA_MAX: Final = -8
ARENAS: Final = 2
"""glibc gives threads arenas of their own, eight a core, and what one of RocksDB's threads has freed serves no other.
One for the loop, one for the rest: 400,000 keys took 162 MiB with two, 180 MiB without."""
DESCRIPTORS: Final = 65_536
"""Open files and connections: the two databases take up to 1,024, and each client one. Many systems begin with a soft
limit of 1,024, for programs that still call select(2)."""

MIN_DESCRIPTORS: Final = 64
"""Fewer don't do even for an empty node: it would fail amid its founding."""


def limit_arenas() -> None:
    """Let glibc give threads `ARENAS` arenas at most; with another C library nothing happens. To be called before
    threads start."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)


def raise_descriptors() -> int:
    """Raise the soft limit of open files as far as the hard one and `DESCRIPTORS` let it; returns what it is now.
    Raises `ConfigurationError` if that can't do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if wanted < MIN_DESCRIPTORS:
        raise ConfigurationError(
            f"the limit of open files is {hard}, too low for a node; raise it to {DESCRIPTORS} (LimitNOFILE, ulimit -n)"
        )
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted

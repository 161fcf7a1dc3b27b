"""What requests are made of. Few keys, so that they meet; at every edge that there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

KEYS: Final = (b"a", b"a\0", b"aa", b"b", b"c", b"c\xff", b"d/1", b"d/2", b"\0", b"\xff", b"\xff\xff")
"""With the sentinel twelve: a sort of etcd's keeps the order of equals among so many, of more it doesn't."""
CROWD: Final = b"n/"
"""Keys that begin so come many by one transaction, and go at once."""
ENDS: Final = (b"\0", b"\0", b"a", b"a\0", b"aa", b"ac", b"b", b"c", b"d", b"d0", b"\xff", b"\xff\xff\xff", b"\0\0")
VALUES: Final = (b"", b"0", b"1", b"2", b"10", b"\0", b"\xff\xfe", b"v" * 300)
LEASES: Final = (1, 2, 3, 77, 1 << 40, (1 << 63) - 1)
ODD_LEASES: Final = (-1, -(1 << 63), 999_999)
"""Seldom granted."""
SENTINEL: Final = b"zz/sentinel"
BIG: Final = (1 << 63) - 1
MAX_REQUEST: Final = 3 << 19
"""1.5 MiB: etcd's default."""


@dataclass
class World:
    """What the generator knows: the real etcd's state, from its answers."""

    revision: int = 1
    floor: int = 0
    """The last compaction."""
    floors: set[int] = field(default_factory=set)
    """All compactions."""
    leases: set[int] = field(default_factory=set)
    streams: list[int] = field(default_factory=list)
    """Watch streams that are open."""
    next_stream: int = 0
    waiting: set[int] = field(default_factory=set)
    """Streams with a watcher that waits for a revision to come, or asked for one that is compacted."""


def chance(rng: Random, percent: float) -> bool:
    """True in so many of a hundred draws."""
    return rng.random() * 100 < percent


def key(rng: Random, empty: float = 8) -> bytes:
    """A key; in `empty` of a hundred draws none."""
    return b"" if chance(rng, empty) else rng.choice(KEYS)


def span(rng: Random, empty: float = 8) -> tuple[bytes, bytes]:
    """A key and a range end: one key, a prefix, ranges forward and backward, all from a key on, all."""
    match rng.randrange(6):
        case 0 | 1:
            return key(rng, empty), b""
        case 2:
            return b"\0", b"\0"
        case 3:
            return rng.choice(((b"a", b"b"), (b"c", b"d"), (b"d/", b"d0"), (b"\xff", b"\0"), (b"a", b"a")))
        case _:
            return key(rng, empty), rng.choice(ENDS)


def revision(rng: Random, world: World) -> int:
    """Of a read: mostly the latest."""
    return 0 if chance(rng, 45) else edge(rng, world)


def edge(rng: Random, world: World) -> int:
    """A revision at an edge: of what exists, of what is kept, of the type."""
    near = (world.revision, world.revision - 1, world.floor, world.floor + 1)
    wrong = (world.floor - 1, 1, world.revision + 1, world.revision + 1000, -1, -BIG - 1, BIG)
    match rng.randrange(4):
        case 0:
            return rng.choice(near)
        case 1:
            return rng.choice(wrong)
        case _:
            return rng.randint(max(0, world.floor - 2), world.revision + 1)


def lease(rng: Random, world: World) -> int:
    """Of a put: none, one that lives, or one that doesn't."""
    if chance(rng, 55):
        return 0
    if world.leases and chance(rng, 55):
        return rng.choice(sorted(world.leases))
    return rng.choice((*LEASES, *ODD_LEASES))


def value(rng: Random) -> bytes:
    """A value."""
    return rng.choice(VALUES)

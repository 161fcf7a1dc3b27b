"""Types for the numbers that must not be mixed up below ``node``; there and above they are plain integers.

All are unsigned 64-bit on the wire and on disk unless said otherwise; 0 means "none" for every id.
"""

from __future__ import annotations

from typing import Final, NewType

NodeId = NewType("NodeId", int)
"""Drawn by a fresh node and kept in its data directory for ever; the name is only a label (S14)."""

GroupId = NewType("GroupId", int)
"""A Raft group, hence a shard. The meta group is 1, `default` 2, `etcd` 3; others are issued by meta."""

Generation = NewType("Generation", int)
"""Which build of a replica's data is current (32 bits); a snapshot is built under the next one (S30)."""

BatchId = NewType("BatchId", int)
"""A log batch, counted from 1 in a data directory's whole life."""

META_GROUP: Final = GroupId(1)
DEFAULT_GROUP: Final = GroupId(2)
ETCD_GROUP: Final = GroupId(3)

LEASE_GROUP_SHIFT: Final = 40
"""A lease id is any signed 64-bit number but 0. One that the server picks is positive, and has its group in the bits
from this one to 62."""


def lease_group(lease: int) -> GroupId:
    """The group that a server-picked lease id names."""
    return GroupId(lease >> LEASE_GROUP_SHIFT)

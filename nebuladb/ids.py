"""Names for the numbers that must not be mixed up.

All are unsigned 64-bit on the wire and on disk unless said otherwise; 0 means "none" for every id.
"""

from __future__ import annotations

from typing import Final, NewType

ClusterId = NewType("ClusterId", int)
"""Drawn once by the founder of a cluster; every peer message carries it."""

NodeId = NewType("NodeId", int)
"""Drawn by a fresh node and kept in its data directory for ever; the name is only a label (S14)."""

GroupId = NewType("GroupId", int)
"""A Raft group, hence a shard. The meta group is 1, `default` 2, `etcd` 3; others are issued by meta."""

ReplicaId = NewType("ReplicaId", int)
"""A group's copy on one node. Issued by the meta group, never used twice (S16)."""

Generation = NewType("Generation", int)
"""Which build of a replica's data is current (32 bits); a snapshot is built under the next one (S30)."""

Term = NewType("Term", int)
Index = NewType("Index", int)

Revision = NewType("Revision", int)
"""A shard's logical clock: one step a write transaction. An empty shard is at revision 1."""

LeaseId = NewType("LeaseId", int)
"""64 bits with a sign, not 0. An id the server picks is positive and has its group in bits 40 to 62."""

RequestId = NewType("RequestId", int)
"""A node's name for one request: 32 random bits of the process, then a 32-bit counter."""

BatchId = NewType("BatchId", int)
"""A log batch, counted from 1 in a data directory's whole life."""

META_GROUP: Final = GroupId(1)
DEFAULT_GROUP: Final = GroupId(2)
ETCD_GROUP: Final = GroupId(3)

LEASE_GROUP_SHIFT: Final = 40


def lease_group(lease: int) -> GroupId:
    """The group that a server-picked lease id names."""
    return GroupId(lease >> LEASE_GROUP_SHIFT)

"""What an operator may set of a node's behaviour, as `Node` takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nebuladb.node.retention import Retention
from nebuladb.node.tail import TailLimits

SNAPSHOT_RATE: Final = 32 << 20
"""Bytes of rows that a node sends a second, all its snapshots together: about a quarter of a core here and one at the
receiver, and less than half of what one disk writes beside its log."""
MIN_SNAPSHOT_RATE: Final = 128 << 10
"""An operator may set no less: each of `MAX_OUTGOING` gets on by a chunk in 4 s then, and one that doesn't for
`outgoing.IDLE_TICKS`, 10 s, is given up. With 10 KiB a second none ever came to its end."""
MAX_OUTGOING: Final = 4
"""Each keeps old tables on the disk, and perhaps one memtable and four chunks in memory."""
MAX_INCOMING: Final = 4


class SnapshotLimits(NamedTuple):
    """How quickly snapshots are sent to replicas that were away for long, and how many at a time either way."""

    rate: int = SNAPSHOT_RATE
    outgoing: int = MAX_OUTGOING
    incoming: int = MAX_INCOMING


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Times in milliseconds; 0 switches a thing off."""

    retention: Retention = field(default_factory=Retention)
    """History that the leaders on this node keep."""
    tail: TailLimits = field(default_factory=TailLimits)
    """How much of a shard's log is kept for a replica that is away."""
    snapshots: SnapshotLimits = field(default_factory=SnapshotLimits)
    stall: int = 0
    """A log batch that is older and not durable means that the disk hangs: this node leads nothing then."""
    lease_reads: bool = False
    """Leaders read by their lease, and nobody votes just after its start (S9): to be the same on all nodes."""
    check: int = 0
    """How often the leaders on this node have their replicas compared (S28)."""

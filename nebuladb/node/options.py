"""What an operator may set of a node's behaviour, as `Node` takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nebuladb.node.retention import Retention
from nebuladb.node.snapshots import SnapshotLimits
from nebuladb.node.tail import TailLimits


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Times in milliseconds; 0 switches a thing off."""

    retention: Retention = field(default_factory=Retention)
    """History that the leaders on this node keep."""
    tail: TailLimits = field(default_factory=TailLimits)
    """How much of a shard's log is kept for a replica that is away."""
    snapshots: SnapshotLimits = field(default_factory=SnapshotLimits)
    """How quickly, and how many at a time, are sent to replicas that were away longer."""
    stall: int = 0
    """A log batch that is older and not durable means that the disk hangs: this node leads nothing then."""
    lease_reads: bool = False
    """Leaders read by their lease, and nobody votes just after its start (S9): to be the same on all nodes."""
    check: int = 0
    """How often the leaders on this node have their replicas compared (S28)."""

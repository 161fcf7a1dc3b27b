"""What an operator may set of a node's behaviour, as `Node` takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nebuladb.node.retention import Retention


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Times in milliseconds; 0 switches a thing off."""

    retention: Retention = field(default_factory=Retention)
    """History that the leaders on this node keep."""
    stall: int = 0
    """A log batch that is older and not durable means that the disk hangs: this node leads nothing then."""
    check: int = 0
    """How often the leaders on this node have their replicas compared (S28)."""

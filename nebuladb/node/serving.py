"""Whether a node serves a shard."""

from __future__ import annotations

from nebuladb.errors import Unavailable
from nebuladb.node.applier import GroupData
from nebuladb.node.node import Node


def serving(node: Node, group: int) -> GroupData:
    """The node's data of `group`. Raises `Unavailable` where there is none, and after a restart while it is older than
    what the log says was committed (`Replica.serves_from`)."""
    data = node.groups.get(group)
    replica = node.host.replicas.get(group)
    if data is None or replica is None:
        raise Unavailable(f"this node has no replica of shard {group}; try another node")
    if data.store.index < replica.serves_from:
        raise Unavailable(f"this node is still replaying shard {group}'s log; try another node")
    return data

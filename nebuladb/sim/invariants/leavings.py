"""Dropped keyspaces leave nothing on a node but tombstones, on every node that was told of them (S16, S17)."""

from __future__ import annotations

from nebuladb.node.node import Node
from nebuladb.node.registry import GroupState
from nebuladb.sim.violation import require


class Leavings:
    """Of the shards of all keyspaces that were ready once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[tuple[int, int], ...]] = {}
        """Group → (replica, node) of each of its first replicas."""

    def made(self, group: int, replicas: tuple[tuple[int, int], ...]) -> None:
        """A shard is there, with these replicas, as its descriptor says."""
        self._made[group] = replicas

    def check(self, name: str, node: Node) -> None:
        """Look at a node that has nothing left to destroy. A replica that it knows nothing of is as bad as one that is
        there: it comes to be when meta's log is read again after a crash, and a slice ends before the drop."""
        listed = {shard.group for shard in node.meta.told}
        for group, row in sorted(node.reconciler.rows.items()):
            dropped = group in self._made and group not in listed
            require(
                not dropped or row.state == GroupState.TOMBSTONE,
                f"group {group} on {name}: its keyspace was dropped, and it has a replica {row.replica} of it",
            )
        for group, replicas in sorted(self._made.items()):
            for replica, home in replicas:
                if home == node.identity.node and group not in listed:
                    known = node.reconciler.rows.get(group)
                    require(
                        known is not None and known.replica >= replica,
                        f"group {group} on {name}: it was dropped, and nothing says that replica {replica} is gone",
                    )

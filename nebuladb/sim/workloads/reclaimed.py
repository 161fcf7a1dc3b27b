"""What physical deletion must have left of a compacted history (etcd 25)."""

from __future__ import annotations

from nebuladb.ids import Generation, GroupId
from nebuladb.kv.rows import Keys, decode_row
from nebuladb.node.node import Node
from nebuladb.sim.violation import require


def is_reclaimed(node: Node, group: int, revision: int, name: str) -> None:
    """Raise `Violation` unless, of each key, only what is read at `revision` is left of what was written before it."""
    keys = Keys(GroupId(group), Generation(node.host.replicas[group].generation))
    where = f"group {group} on {name}"
    newest: dict[bytes, int] = {}
    for _, data in node.data.scan(keys.record_key(0, 0), keys.record_key(revision + 1, 0)):
        key, record = decode_row(data)
        old = newest.get(key, revision)
        require(
            old >= revision,
            f"{where}: revision {old} of {key!r} is kept beside {record.main}, the floor is {revision}",
        )
        require(
            bool(record.version) or record.main == revision,
            f"{where}: a deletion of {key!r} at {record.main} is kept, the floor is {revision}",
        )
        newest[key] = record.main

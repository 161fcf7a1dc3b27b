"""Snapshots that didn't fit on this node's disk, and the alarm of each."""

from __future__ import annotations

from collections.abc import Mapping

from nebuladb.env import probe
from nebuladb.node.alarms import Alarm, AlarmKind, Alarms
from nebuladb.node.replica import Replica


class Unfit:
    """Kept by the receiver. Room that comes back when one is dropped hides that it didn't fit: its alarm stays until
    one is in, or none is needed, since the log of another leader reaches back far enough."""

    def __init__(self, node: str, alarms: Alarms) -> None:
        """`node`: its name."""
        self._node = node
        self._alarms = alarms
        self._ends: dict[int, int] = {}
        """Group → where its log ended then."""

    def dropped(self, group: int, replica: Replica | None, written: int) -> None:
        """`written` bytes of it were on the disk when that was full."""
        self._ends[group] = replica.raft.last_index if replica is not None else 0
        text = (
            f"{self._node}: a snapshot of shard {group} doesn't fit on the disk, which was full after "
            f"{written >> 20} MiB of it; it comes again, later each time: make room there, delete keys and run "
            "`nebula-cli compact`, or drop a keyspace"
        )
        self._alarms.raised(Alarm(AlarmKind.NO_SPACE, text, group))

    def look(self, replicas: Mapping[int, Replica]) -> None:
        """Whether the log goes on where one didn't fit."""
        for group, end in list(self._ends.items()):
            replica = replicas.get(group)
            if replica is not None and not replica.lost and replica.raft.last_index > end:
                probe("log goes on where a snapshot didn't fit")
                self.over(group)

    def over(self, group: int) -> None:
        """One is in, or none is needed any more. Idempotent."""
        self._ends.pop(group, None)
        self._alarms.cleared(AlarmKind.NO_SPACE, group)

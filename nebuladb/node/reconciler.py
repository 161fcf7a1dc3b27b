"""Makes this node's groups what meta says they are: the registry as it will be once all batches are written (S17).

A group is created because a descriptor lists it, whenever that is seen, however often. It is removed because a
committed removal names this very replica, never because something is absent.

Removing is three steps, and a crash after any of them goes on with the next. First tombstone and the log's end, in one
batch; once that is durable, the data; then the removal's row in meta, so that the cluster knows. (Were the data to go
first, a crash would leave a replica in the registry whose data is gone: a lost disk looks like that.) At start, data of
a tombstone is data that nobody refers to (S30). A tombstone stays: ids are never used again (S16). A replica that was
removed before it was made here leaves one, too: after a crash meta's log is read again, and lists it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from nebuladb.env import probe
from nebuladb.ids import Generation, GroupId
from nebuladb.node.host import Host
from nebuladb.node.meta import Removal
from nebuladb.node.registry import GroupState, RegistryRow, first_row
from nebuladb.raft import Configuration
from nebuladb.shard import Descriptor, Role
from nebuladb.shard.layout import INITIAL

NOTHING: Final = 0
"""In the place of a generation: there is no data to destroy. The first generation is 1."""


class Reconciler:
    """See the module. Invariant: a group is at most one of: to be started, to be destroyed."""

    def __init__(
        self,
        node: int,
        host: Host,
        destroy: Callable[[GroupId, Generation], None],
        registry: Mapping[int, RegistryRow],
    ) -> None:
        """`destroy` removes a group's data; it raises `WriteStalled`."""
        self._node = node
        self._host = host
        self._destroy = destroy
        self.rows = dict(registry)
        """What the registry has, or is about to have."""
        self._starting: dict[int, int] = {}
        """Group → the batch that creates it, to be started when that is durable."""
        self._moved: dict[int, int] = {}
        """Group → the batch with the newest places of its replicas."""
        self._doomed: dict[int, tuple[int, int]] = {}
        """Group → (the batch with its tombstone, the generation of its data)."""

    @property
    def busy(self) -> bool:
        """Whether anything waits for a batch to become durable."""
        return bool(self._starting or self._moved or self._doomed)

    def create(self, shard: Descriptor) -> None:
        """A replica of `shard`, if this node is to have one and has not heard of it before."""
        row = self.rows.get(shard.group)
        if row is not None and (row.state != GroupState.TOMBSTONE or shard.group in self._doomed):
            self._know(shard, row)
            return
        for replica, node in shard.replicas:
            if node != self._node:
                continue
            if shard.role(replica) is Role.LEAVING and replica not in shard.first_voters:
                continue  # nobody waits for it; without one that votes from the beginning the rest may be too few
            if row is not None and replica <= row.replica:
                continue  # an id below a tombstone's is one that was removed (S16)
            generation = row.generation + 1 if row is not None else 1
            if row is not None:
                probe("a group comes back under a new replica id")
            made = first_row(replica, dict(shard.replicas), shard.initial, shard.first_voters, generation)
            self.rows[shard.group] = made
            self._starting[shard.group] = self._host.create_group(shard.group, shard.initial, made.encode())

    def _know(self, shard: Descriptor, row: RegistryRow) -> None:
        """Where the group's replicas are now. They are addressed once the registry has it: after a restart it would
        still be the configuration that says whose votes count."""
        if row.state != GroupState.TOMBSTONE and row.nodes != shard.replicas:
            self._moved[shard.group] = self._change(shard.group, row._replace(nodes=shard.replicas))

    def moved(self) -> None:
        """Address those whose places are durable by now."""
        if not self._moved:
            return
        durable = self._host.batches.durable
        for group in [group for group, batch in self._moved.items() if batch <= durable]:
            del self._moved[group]
            if group in self._host.replicas:
                self._host.replicas[group].moved(self.rows[group].nodes)

    def configured(self, group: int, index: int, configuration: Configuration) -> None:
        """The entry at `index` has brought `configuration`: the registry has it too, since the data, which has it
        first, may be lost in a crash, and the vote that it decided about is not (S4, S30). If our replica isn't in it
        any more, it stays until a removal names it: those who stay may need its vote to learn of this (S13)."""
        row = self.rows[group]
        if index > row.configuration_index:
            self._change(group, row._replace(configuration_index=index, configuration=configuration))

    def _change(self, group: int, row: RegistryRow) -> int:
        """The batch that has the new row."""
        self.rows[group] = row
        return self._host.register_group(group, row.encode())

    def startable(self) -> list[tuple[int, RegistryRow]]:
        """Groups whose creation is durable and that aren't `started` yet."""
        if not self._starting:
            return []
        durable = self._host.batches.durable
        return [(group, self.rows[group]) for group, batch in self._starting.items() if batch <= durable]

    def later(self, group: int) -> None:
        """It was created in an earlier life, and its first rows, which were lost, can't be written now."""
        probe("a restarted group's first write stalled")
        self._starting[group] = 0

    def started(self, group: int) -> None:
        """The node runs it."""
        del self._starting[group]

    def remove(self, removal: Removal) -> bool:
        """Begin to destroy the replica that `removal` names; False if it isn't here (any more)."""
        group = removal.group
        row = self.rows.get(group)
        if row is None or (row.state == GroupState.TOMBSTONE and row.replica < removal.replica):
            self._never(removal, row)
            return False
        if row.state == GroupState.TOMBSTONE or row.replica != removal.replica:
            return False
        probe("group removed")
        if self._starting.pop(group, None) is not None:
            probe("group removed before it started")
        self._moved.pop(group, None)
        tombstone = row._replace(state=GroupState.TOMBSTONE, nodes=(), configuration=Configuration())
        self.rows[group] = tombstone
        self._doomed[group] = (self._host.remove_group(group, tombstone.encode()), row.generation)
        return True

    def _never(self, removal: Removal, row: RegistryRow | None) -> None:
        """A replica that was listed and removed within one slice is never to be here. After a crash meta's log is read
        again, in other slices: one that ends between the two would have us make what nobody tells us to destroy any
        more."""
        probe("group removed that was never here")
        tombstone = RegistryRow(
            GroupState.TOMBSTONE, row.generation if row else 0, removal.replica, INITIAL, 0, (), Configuration()
        )
        _, generation = self._doomed.get(removal.group, (0, NOTHING))
        self._doomed[removal.group] = (self._change(removal.group, tombstone), generation)

    def destroy(self) -> bool:
        """Destroy the data whose tombstone is durable. True if any was. Raises `WriteStalled`: call again later."""
        if not self._doomed:
            return False
        ready = [group for group, (batch, _) in self._doomed.items() if batch <= self._host.batches.durable]
        for group in ready:
            _, generation = self._doomed[group]
            if generation != NOTHING:
                self._destroy(GroupId(group), Generation(generation))
            del self._doomed[group]
        return bool(ready)

    def done(self, removals: Iterable[Removal]) -> list[Removal]:
        """Those for this node that need nothing more here."""
        return [removal for removal in removals if removal.node == self._node and self._gone(removal)]

    def _gone(self, removal: Removal) -> bool:
        """Whether the registry says, durably, that there is no such replica here, and never will be (S16)."""
        row = self.rows.get(removal.group)
        if row is None or row.replica < removal.replica:
            return False
        return row.replica > removal.replica or (
            row.state == GroupState.TOMBSTONE and removal.group not in self._doomed
        )

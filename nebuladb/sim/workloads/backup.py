"""Backups of the whole cluster through one node, while all else goes on; each is restored at once, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Final

from nebuladb.errors import Corruption, NebulaError, StoreError, Unavailable
from nebuladb.ids import META_GROUP, Generation, GroupId
from nebuladb.kv.export import Exporter
from nebuladb.kv.increment import IncrementExporter
from nebuladb.kv.store import Store
from nebuladb.node.backup import BackupWriter, Manifest, ShardPart, examine
from nebuladb.node.node import Node
from nebuladb.shard import Descriptor, KeyspaceState
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import Violation, require
from nebuladb.sim.workloads.archive import Archive, Restored

READ_MS: Final = 20
"""The longest that a chunk takes to be read."""
AGAIN_MS: Final = 20
TRIES: Final = 20
"""For an instant in which no entry of the shard is half applied, as ``api.backup``."""
PAUSE_MS: Final = 1_200
CHAIN: Final = 3
"""Backups that build on each other, at most."""


class _Save:
    """One that is being made, through `machine` as long as `node` lives there."""

    def __init__(self, machine: Machine, builds_on: Restored | None) -> None:
        self.machine = machine
        self.node: Node | None = machine.node
        self.base = builds_on
        self.writer = BackupWriter()
        self.data = b""
        self.shards: list[Descriptor] = []
        self.told: dict[int, int] = {}
        """Group → the newest revision that anybody had been told when its turn came."""
        self.doubted: Descriptor | None = None
        """A shard that could not be read, about which meta was asked."""
        self.exporter: Exporter | None = None


class Archivist(Actor):
    """Saves, verifies and restores as ``nebula-cli snapshot`` does; half of them build on the one before."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._save: _Save | None = None
        self._last: Restored | None = None

    def _machine(self) -> Machine:
        return self._save.machine if self._save else super()._machine()

    def _failed(self) -> None:
        save = self._save
        if save is not None and save.shards and save.exporter is None and save.doubted != save.shards[0]:
            save.doubted = save.shards[0]
            self._look(partial(self._dropped, save), META_GROUP)
            return
        self._save = None
        if save is not None and save.exporter is not None:
            save.exporter.close()
        super()._failed()

    def _begin(self) -> None:
        last = self._last
        builds = last is not None and last.files < CHAIN and self._rng.randrange(2)
        self._save = save = _Save(self._machine(), last if builds else None)
        if save.node is None:
            self._failed()
        else:
            self._look(partial(self._listed, save), META_GROUP)

    def _listed(self, save: _Save, _: Store, machine: Machine) -> None:
        """The node's picture of meta is as new as the save's beginning."""
        node = machine.node
        if node is None or node is not save.node:
            self._failed()
            return
        meta = node.meta
        ready = {name: found for name, found in sorted(meta.keyspaces.items()) if found.state is KeyspaceState.READY}
        save.shards = [shard for _, shard in sorted(meta.shards.items()) if shard.keyspace in ready]
        since = save.base.name if save.base else ""
        keyspaces = tuple(ready.values())
        save.data = save.writer.begin(Manifest(node.founding.cluster, "", keyspaces, since, meta.life, meta.next_group))
        self._next(save)

    def _next(self, save: _Save) -> None:
        """The next shard, or the end."""
        if not save.shards:
            save.data += save.writer.end()
            self._save = None
            self._judge(save)
            self._ok(PAUSE_MS)
            return
        group = save.shards[0].group
        save.told[group] = self._board.told(group)
        self._look(partial(self._opened, save, TRIES), group)

    def _dropped(self, save: _Save, _: Store, machine: Machine) -> None:
        """The next shard can't be read: perhaps its keyspace is gone, by a picture that is as new as now."""
        node, shard = machine.node, save.shards[0]
        if node is None or node is not save.node:
            self._failed()
            return
        keyspace = node.meta.keyspaces.get(shard.keyspace)
        if shard.group in node.meta.shards and keyspace and keyspace.state is KeyspaceState.READY:
            self._failed()
            return
        save.data += save.writer.gone(shard.keyspace)
        save.shards = [other for other in save.shards if other.keyspace != shard.keyspace]
        self._core.hit("backup without a dropped keyspace")
        self._next(save)

    def _opened(self, save: _Save, tries: int, store: Store, machine: Machine) -> None:
        """The shard's state there is as new as the look at it."""
        node, shard = machine.node, save.shards[0]
        if node is None or node is not save.node:
            self._failed()
            return
        generation = Generation(node.host.replicas[shard.group].generation)
        after = save.base.held.get(shard.group, 0) if save.base else 0
        try:
            if 0 < after <= store.revision and store.floor <= after:
                exporter: Exporter = IncrementExporter(node.data, GroupId(shard.group), generation, after)
            else:
                exporter, after = Exporter(node.data, GroupId(shard.group), generation), 0
        except Unavailable:
            if tries:
                self._core.scheduler.after(AGAIN_MS, self._again, save, tries - 1)
            else:
                self._failed()
            return
        save.exporter, head = exporter, exporter.head
        require(
            head.revision >= save.told[shard.group],
            f"{machine.name}: a backup has revision {head.revision} of group {shard.group} after "
            f"{save.told[shard.group]} had been told",
        )
        part = ShardPart(shard, head.index, head.revision, head.floor, head.keys, head.size, after)
        save.data += save.writer.shard(part)
        self._read(save)

    def _again(self, save: _Save, tries: int) -> None:
        if self._save is save:
            self._look(partial(self._opened, save, tries), save.shards[0].group)

    def _read(self, save: _Save) -> None:
        """One chunk; a connection that broke meanwhile ends it all."""
        exporter = save.exporter
        if self._save is not save or exporter is None:
            return
        if save.machine.node is not save.node:
            self._failed()
            return
        try:
            chunk = exporter.read()
        except StoreError:
            if not save.machine.spoiled:
                raise
            self._failed()  # damage is never saved
            return
        if chunk is not None:
            save.data += save.writer.chunk(chunk)
            self._core.scheduler.after(self._rng.randrange(READ_MS), self._read, save)
            return
        exporter.close()
        save.exporter = None
        del save.shards[0]
        self._next(save)

    # --- what is in it ---------------------------------------------------------------------------------------------

    def _judge(self, save: _Save) -> None:
        """It checks, no damaged one does, and what is restored from it was there."""
        reader, parts = examine(BytesIO(save.data))
        self._damage(save.data)
        last = Restored() if save.base is None else save.base
        last.restore(BytesIO(save.data))
        require(last.name == reader.name, f"a backup is called {last.name}, and {reader.name}")
        self._last = last
        self._core.hit("backup restored" if save.base is None else "increment restored")
        for part in parts:
            group = part.descriptor.group
            self._board.fact(group, Archive).add(last.content(part, self._board.changes, self._rng))

    def _damage(self, data: bytes) -> None:
        damaged = bytearray(data)
        damaged[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        for bad in (bytes(damaged), data[: self._rng.randrange(len(data))]):
            try:
                examine(BytesIO(bad))
            except Corruption:
                continue
            except NebulaError as error:
                raise Violation(f"a damaged backup is called {error}") from error
            raise Violation("a damaged backup is taken for a whole one")

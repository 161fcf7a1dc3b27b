"""What was restored from backups, and whether it was ever so."""

from __future__ import annotations

from io import BytesIO
from random import Random
from typing import Final, NamedTuple

from nebuladb.ids import Generation, GroupId, NodeId
from nebuladb.kv.importer import Importer, Target
from nebuladb.kv.increment import IncrementTarget
from nebuladb.kv.store import Store
from nebuladb.kv.verify import verify_rows
from nebuladb.node.backup import BackupReader, ShardPart, compare
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.autopsy import is_noticed
from nebuladb.storage.memory import MemoryEngine

GENERATION: Final = Generation(1)
NOBODY: Final = NodeId(1)
KEPT: Final = 4
"""Restored states of a group that are compared with its last one."""

Content = dict[bytes, tuple[int, int, bytes]]
"""Key → (mod revision, version, value)."""


class Saved(NamedTuple):
    """A group as a backup has it."""

    revision: int
    content: Content


def content_of(store: Store, revision: int) -> Content:
    """All keys as they were at `revision`."""
    found: Content = {}
    key = b""
    while True:
        page = store.scan(key, revision=revision)
        found |= {each.key: (each.mod_revision, each.version, each.value) for each in page.kvs}
        if not page.cursor:
            return found
        key = page.cursor


class Restored:
    """A new cluster's data, made from a backup and those that build on it."""

    def __init__(self) -> None:
        self.name = ""
        """Of the last file."""
        self.files = 0
        self.held: dict[int, int] = {}
        """Group → its revision."""
        self._engine = MemoryEngine(wal=False)

    def restore(self, file: BytesIO) -> None:
        """Take one more file. Raises `Corruption`."""
        reader = BackupReader(file)
        parts = []
        for part, chunks in reader.shards():
            group = GroupId(part.descriptor.group)
            importer = Importer(self._target(part), group, GENERATION)
            for chunk in chunks:
                importer.feed(chunk)
            compare(part, importer)
            parts.append(part)
        held = {part.descriptor.group: part.revision for part in reader.kept(parts)}
        for gone in sorted((self.held.keys() | {part.descriptor.group for part in parts}) - held.keys()):
            Store.destroy(self._engine, GroupId(gone), GENERATION)
        require(reader.manifest.since == self.name, f"a backup builds on {reader.manifest.since}, not on {self.name}")
        self.name, self.held = reader.name, held
        self.files += 1

    def _target(self, part: ShardPart) -> Target:
        group = GroupId(part.descriptor.group)
        if not part.after:
            Store.destroy(self._engine, group, GENERATION)
            return self._engine
        held = self.held.get(group, 0)
        require(held == part.after, f"a backup of group {group} builds on revision {part.after}; there is {held}")
        return IncrementTarget(self._engine, group, GENERATION)

    def content(self, part: ShardPart, changes: Changes, rng: Random) -> Saved:
        """A shard as it was restored: its rows agree with each other, and it is what was published, now and at any of
        its earlier revisions."""
        group = GroupId(part.descriptor.group)
        wrong = list(verify_rows(self._engine, group, GENERATION))
        where = f"group {group}, restored at revision {part.revision}"
        require(not wrong, f"{where}: {wrong}")
        is_noticed(self._engine, group, GENERATION, rng, where)
        store = Store(self._engine, group, GENERATION, NOBODY)
        require(store.revision == part.revision, f"{where}: it is at revision {store.revision}")
        for revision in (part.revision, rng.randrange(max(store.floor, 1), part.revision + 1)):
            content = content_of(store, revision)
            changes.were(group, revision, content, f"{where}, at {revision}")
        now = content_of(store, part.revision)
        require(len(now) == part.keys, f"{where}: {len(now)} keys are there, {part.keys} are announced")
        return Saved(part.revision, now)


class Archive:
    """Of one group: what was saved is what the cluster still says it was."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._saved: list[Saved] = []

    def add(self, saved: Saved) -> None:
        """A backup has it so."""
        self._saved = [*self._saved[-KEPT + 1 :], saved]

    def check(self) -> None:
        """Each was compared with what had been published, when it was made."""

    def holds(self, store: Store) -> None:
        """After recovery, on each node."""
        for saved in self._saved:
            if store.floor <= saved.revision:
                content = content_of(store, saved.revision)
                where = f"group {self._group}, revision {saved.revision}"
                require(content == saved.content, f"{where}: a backup has {saved.content}, the cluster {content}")

"""`nebulad recover`: a cluster of one out of a survivor, when the majority is gone for good.

The survivor's log is applied to its end, committed or not: what it holds may have been acknowledged. What it doesn't
hold is lost. The cluster gets another id, for the nodes that are gone must not come back into it, with their votes and
another history.

Nothing of the old node is destroyed before the new one is whole: identity.json goes aside first, so that no node starts
from half a recovery, and comes back last. Repeating it goes on.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nebuladb.errors import ConfigurationError, Corruption
from nebuladb.ids import META_GROUP, Generation, GroupId, NodeId
from nebuladb.kv.command import Work
from nebuladb.kv.store import Store
from nebuladb.node.entry import decode_payload
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.joined import FILE as JOINED
from nebuladb.node.meta import Meta, read_meta
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.raft.entry import ENTRY_HEADER, EntryKind
from nebuladb.server.directory import DataDirectory
from nebuladb.server.site import Site, apply_all
from nebuladb.shard import Descriptor, KeyspaceState
from nebuladb.storage.engine import Engine
from nebuladb.storage.files import sync_directory, write_durably
from nebuladb.storage.log import LogStore
from nebuladb.storage.rocks import RocksEngine, examine_log
from nebuladb.storage.wal import wal_files

ASIDE: Final = ".before-recovery"
SLICE_BYTES: Final = 4 << 20

WARNING: Final = """This makes a cluster of one node out of this directory.
  - Writes that were acknowledged by the others and that this node has not got are LOST.
  - Writes that were never acknowledged may turn out to have been done.
  - Nodes of the old cluster can never join this one: empty their directories, and add them as new members.
  - Do it on ONE survivor only, the one with the highest applied indexes, and never while a majority may come back."""


def recover(path: Path, say: Callable[[str], None]) -> None:
    """Make `path` a cluster of one. Raises `ConfigurationError` or `IdentityError` if it can't be, `Corruption`."""
    if not any((path / name).exists() for name in ("identity.json", f"identity.json{ASIDE}")):
        raise ConfigurationError(f"data-dir: {path} holds no node")
    if all((path / name).exists() for name in ("identity.json", f"identity.json{ASIDE}")):
        raise ConfigurationError(
            f"data-dir: {path} was recovered already; the files *{ASIDE} are what was there before"
        )
    directory = DataDirectory(path)
    try:
        identity = Identity.decode(_aside(path / "identity.json").read_bytes())
        for name in ("founding.json", JOINED):
            if (path / name).exists():
                _aside(path / name)
        founding = _rebuild(path, identity, say)
        write_durably(path / "founding.json", founding.encode())
        write_durably(path / "identity.json", identity._replace(cluster=founding.cluster).encode())
    finally:
        directory.close()
    say(f"node {identity.name!r} is a cluster of one now, {founding.cluster:016x}; start it, and add members")


def _aside(path: Path) -> Path:
    """Move a file out of the way, unless an earlier try did; where it is now."""
    target = path.with_name(path.name + ASIDE)
    if path.exists() and not target.exists():
        path.replace(target)
        sync_directory(path.parent)
    return target


def _rebuild(path: Path, identity: Identity, say: Callable[[str], None]) -> Founding:
    """The databases."""
    old, new = path / f"raft{ASIDE}", path / "raft.new"
    source = old if old.exists() else path / "raft"
    shutil.rmtree(new, ignore_errors=True)
    with ExitStack() as stack:
        log = LogStore(_open(source, path / f"raft-wal{ASIDE}", say))
        stack.callback(log.close)
        data = RocksEngine.open_data(path / "data")
        stack.callback(data.close)
        rows = {int(group): RegistryRow.decode(row) for group, row in log.registry().items()}
        held = {group: row.generation for group, row in rows.items() if row.state == GroupState.NORMAL}
        if META_GROUP not in held:
            raise Corruption("this node has no replica of the meta group; take another survivor")
        for group, generation in sorted(held.items()):
            _initialise(log, data, group, rows[group])
            _replay(log, data, group, generation, say)
        meta = _meta(data, held[META_GROUP])
        record = meta.nodes.get(identity.node)
        address = record.peer_address if record else ""
        founding = Founding(secrets.randbits(63) | 1, (Founder(identity.name, identity.node, address),))
        # The old meta group's rows stay as they are until the next start, when nobody refers to them.
        site = Site(data, founding, held | {META_GROUP: held[META_GROUP] + 1})
        shards = site.placed(_complete(meta, held))
        for shard in shards:
            site.enter(shard)
        keyspaces = [found for _, found in sorted(meta.keyspaces.items()) if found.state is KeyspaceState.READY]
        site.write_meta(keyspaces, shards)
        made = LogStore(RocksEngine.open_log(new))
        stack.callback(made.close)
        site.write_log(made, shards, identity.node)
        data.flush()
        made.sync()
    if source != old:
        source.replace(old)
    new.replace(path / "raft")
    sync_directory(path)
    return founding


def _open(source: Path, keep: Path, say: Callable[[str], None]) -> RocksEngine:
    """The log's database in `source`, as far as it can be read; what can't be is kept in `keep` first."""
    found = examine_log(source)
    if found is not None and found.missing:
        say(f"raft: {found.missing}: what they held is LOST; the damaged files are kept in {keep}")
        if not keep.exists():
            draft = keep.with_name(keep.name + ".tmp")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            for file in wal_files(source):
                write_durably(draft / file.name, file.read_bytes())
            draft.replace(keep)
            sync_directory(keep.parent)
    return RocksEngine.open_log(source, lossy=True)


def _complete(meta: Meta, held: dict[int, int]) -> list[Descriptor]:
    """The shards of the keyspaces that are ready. Raises `Corruption` if this node lacks one."""
    ready = {name for name, found in meta.keyspaces.items() if found.state is KeyspaceState.READY}
    shards = [shard for _, shard in sorted(meta.shards.items()) if shard.keyspace in ready]
    missing = [shard.group for shard in shards if shard.group not in held]
    if missing:
        raise Corruption(f"this node has no replica of shards {missing}; take another survivor, or restore a backup")
    return shards


def _initialise(log: LogStore, data: Engine, group: int, row: RegistryRow) -> None:
    """A group whose data never reached the disk begins where its log does, as at a start."""
    name, generation = GroupId(group), Generation(row.generation)
    if Store.exists(data, name, generation):
        return
    if log.reader(name).start() != row.initial:
        raise Corruption(f"the data of shard {group} is gone and its log is cut; take another survivor")
    index, term = row.initial
    Store.initialise(data, name, generation, index=index, term=term, configuration=row.configuration.encode())


def _replay(log: LogStore, data: Engine, group: int, generation: int, say: Callable[[str], None]) -> None:
    """Apply all that the log holds; changes of members are passed over, for there are no others any more."""
    store = Store(data, GroupId(group), Generation(generation), NodeId(0))
    reader = log.reader(GroupId(group))
    last, commit = reader.last()[0], reader.hard_state.commit
    if store.index < reader.start()[0]:
        raise Corruption(f"the data of shard {group} is older than its log; take another survivor")
    while store.index < last:
        works = []
        for entry in reader.entries(store.index + 1, last + 1, SLICE_BYTES):
            clock, commands = decode_payload(entry.record, ENTRY_HEADER) if entry.kind == EntryKind.NORMAL else (0, [])
            works.append(Work(entry.index, entry.term, clock, commands))
        apply_all(store, works)
    store.close()
    doubtful = f", of which {last - commit} were not known to be committed" if last > commit else ""
    say(f"shard {group}: {last} log entries applied{doubtful}; revision {store.revision}")


def _meta(data: Engine, generation: int) -> Meta:
    store = Store(data, GroupId(META_GROUP), Generation(generation), NodeId(0))
    meta = read_meta(store)
    store.close()
    return meta

"""`nebulad recover`: a cluster of one out of a survivor, when the majority is gone for good.

The survivor's log is applied to its end, committed or not: what it holds may have been acknowledged. What it doesn't
hold is lost. The cluster gets another id, for the nodes that are gone must not come back into it, with their votes and
another history.

Whether it can be done is looked at first, with nothing touched. Nothing of the old node is destroyed before the new one
is whole: identity.json goes aside first, so that no node starts from half a recovery, and comes back last. Repeating it
goes on. What lies aside when there is an identity.json is of an earlier recovery, and never taken for this one's.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nebuladb.errors import ConfigurationError, Corruption, NebulaError, StoreError
from nebuladb.ids import META_GROUP, Generation, GroupId, NodeId
from nebuladb.kv.command import Work
from nebuladb.kv.rows import group_span
from nebuladb.kv.store import Store
from nebuladb.node.entry import decode_payload
from nebuladb.node.identity import FOUNDING_FILE, IDENTITY_FILE, Founder, Founding, Identity
from nebuladb.node.joined import JOINED_FILE
from nebuladb.node.meta import Meta, read_meta
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.raft.entry import ENTRY_HEADER, EntryKind
from nebuladb.server.directory import VOTING, DataDirectory
from nebuladb.server.site import Site, apply_all
from nebuladb.shard import Descriptor, KeyspaceState
from nebuladb.storage.engine import Batch, Engine
from nebuladb.storage.files import read, sync_directory, write_durably
from nebuladb.storage.log import LogStore
from nebuladb.storage.memory import MemoryEngine
from nebuladb.storage.owner import give, unusable
from nebuladb.storage.rocks import RocksEngine, examine_log
from nebuladb.storage.wal import wal_files

ASIDE: Final = ".before-recovery"
SLICE_BYTES: Final = 4 << 20

WARNING: Final = """This makes a cluster of one node out of this directory.
  - Writes that were acknowledged by the others and that this node has not got are LOST.
  - Writes that were never acknowledged may turn out to have been done.
  - Nodes of the old cluster can never join this one: empty their directories, and add them as new members.
  - Do it on ONE survivor only, the one whose logs end last, and never while a majority may come back. `nebulad verify`
    on each survivor, stopped, shows it: the highest term, and of one term the highest index."""


def recover(path: Path, say: Callable[[str], None]) -> None:
    """Make `path` a cluster of one. Raises `ConfigurationError`, `IdentityError`, `Corruption` or `StoreError` if it
    can't be: nothing is touched then, or the error says that it is unfinished, and what to do. What root makes is the
    directory's owner's."""
    try:
        untouched = (path / IDENTITY_FILE).exists()
        known = untouched or (path / f"{IDENTITY_FILE}{ASIDE}").exists()
    except OSError as error:
        raise unusable(path, error) from error
    if not known:
        raise ConfigurationError(f"data-dir: {path} holds no node")
    if untouched and (earlier := _lies_aside(path)):
        raise ConfigurationError(
            f"data-dir: {path} was recovered already; {', '.join(earlier)} is what was there before: if this is a "
            "second disaster, move it out of the directory first"
        )
    directory = DataDirectory(path)
    try:
        try:
            if untouched:
                _check(path)
        except OSError as error:
            raise StoreError(f"{error}; nothing was touched") from error
        try:
            founding, identity = _replace(path, say)
        except (NebulaError, OSError) as error:
            raise StoreError(_unfinished(path, error)) from error
    finally:
        directory.close()
        give(path)
    say(f"node {identity.name!r} is a cluster of one now, {founding.cluster:016x}; start it, and add members")


def _replace(path: Path, say: Callable[[str], None]) -> tuple[Founding, Identity]:
    """Put the new node in the place of the old one: its founding document and its identity."""
    identity = Identity.decode(_aside(path / IDENTITY_FILE).read_bytes())
    for name in (FOUNDING_FILE, JOINED_FILE):
        if (path / name).exists():
            _aside(path / name)
    founding = _rebuild(path, identity, say)
    write_durably(path / FOUNDING_FILE, founding.encode())
    write_durably(path / VOTING, b"")
    write_durably(path / IDENTITY_FILE, identity._replace(cluster=founding.cluster).encode())
    return founding, identity


def _lies_aside(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob(f"*{ASIDE}"))


def _unfinished(path: Path, error: NebulaError | OSError) -> str:
    """What to do where it failed half-way. The data may have entries now that were never committed; a damaged log was
    cut at the damage, and with it may have gone a vote."""
    text = f"{error.message if isinstance(error, NebulaError) else error}. The recovery is unfinished: repeat it"
    back = sorted(_lies_aside(path), key=lambda name: name.startswith("identity"))
    if f"raft-wal{ASIDE}" in back:
        return f"{text}; the node as it was must not come back"
    names = ", ".join(f"{name} to {name.removesuffix(ASIDE)}" for name in back)
    return (
        f"{text}; or, to have the node as it was, move data/ out of {path}, and rename {names}, in the place of what "
        "is there: the others give it its data"
    )


def _check(path: Path) -> None:
    """Raise what a recovery would fail with, as far as can be told without changing anything.

    Meta's log is applied to a copy of its rows in memory: the shards that must be there are those that it ends with.
    """
    Identity.decode(read(path / IDENTITY_FILE))
    source = path / "raft"
    if not source.exists():  # to look into it would make one
        raise Corruption(
            f"there is no {source}: this node was never in a cluster, or has lost its log; take another survivor"
        )
    with ExitStack() as stack:
        log = LogStore(RocksEngine.inspect(source, examine_log(source)))
        stack.callback(log.close)
        data: Engine = MemoryEngine(wal=False)
        if (path / "data").exists():
            data = RocksEngine.inspect(path / "data")
        stack.callback(data.close)
        rows, held = _held(log)
        for group, generation in sorted(held.items()):
            if _begins(log, data, group, rows[group]):
                continue
            store = Store(data, GroupId(group), Generation(generation), NodeId(0))
            index = store.index
            store.close()
            if index < log.reader(GroupId(group)).start()[0]:
                raise _older(group)
        copy, batch = MemoryEngine(wal=False), Batch()
        for key, value in data.scan(*group_span(GroupId(META_GROUP), Generation(held[META_GROUP]))):
            batch.put(key, value)
        copy.write(batch)
        _initialise(log, copy, META_GROUP, rows[META_GROUP])
        _replay(log, copy, META_GROUP, held[META_GROUP], lambda _: None)
        _complete(_meta(copy, held[META_GROUP]), held)


def _held(log: LogStore) -> tuple[dict[int, RegistryRow], dict[int, int]]:
    """(group → its registry row, group → the generation of its data, of those that are in use). Raises `Corruption` if
    the meta group isn't one of them."""
    rows = {int(group): RegistryRow.decode(row) for group, row in log.registry().items()}
    held = {group: row.generation for group, row in rows.items() if row.state == GroupState.NORMAL}
    if META_GROUP not in held:
        raise Corruption("this node has no replica of the meta group; take another survivor")
    return rows, held


def _aside(path: Path) -> Path:
    """Move a file out of the way, unless an earlier try did; where it is now."""
    target = path.with_name(path.name + ASIDE)
    if path.exists() and not target.exists():
        path.replace(target)
        sync_directory(path.parent)
    return target


def _rebuild(path: Path, identity: Identity, say: Callable[[str], None]) -> Founding:
    """Make both databases of the new node out of the old one's; returns the founding document that they are of."""
    old, new = path / f"raft{ASIDE}", path / "raft.new"
    source = old if old.exists() else path / "raft"
    shutil.rmtree(new, ignore_errors=True)
    with ExitStack() as stack:
        log = LogStore(_open(source, path / f"raft-wal{ASIDE}", say))
        stack.callback(log.close)
        data = RocksEngine.open_data(path / "data", patient=True)
        stack.callback(data.close)
        rows, held = _held(log)
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
        site.write_meta(keyspaces, shards, meta.next_group, alarms=meta.declared)
        made = LogStore(RocksEngine.open_log(new))
        stack.callback(made.close)
        site.write_log(made, shards, identity.node)
        data.flush()
        made.sync()
    if source != old:
        source.replace(old)
    shutil.rmtree(path / "raft", ignore_errors=True)  # an earlier try's, which no node was started from
    new.replace(path / "raft")
    sync_directory(path)
    return founding


def _open(source: Path, keep: Path, say: Callable[[str], None]) -> RocksEngine:
    """The log's database in `source`, as far as it can be read; what can't be is kept in `keep` first."""
    found = examine_log(source)
    if found is not None and found.missing:
        files = wal_files(source)
        kept = f"; the damaged files are kept in {keep}" if files else ""
        say(f"raft: {found.missing}: what they held is LOST{kept}")
        if files and not keep.exists():
            draft = keep.with_name(keep.name + ".tmp")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            for file in files:
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
    if _begins(log, data, group, row):
        index, term = row.initial
        configuration, generation = row.configuration.encode(), Generation(row.generation)
        Store.initialise(data, GroupId(group), generation, index=index, term=term, configuration=configuration)


def _begins(log: LogStore, data: Engine, group: int, row: RegistryRow) -> bool:
    """Whether the group has no data and needs none. Raises `Corruption` if it needs some."""
    if Store.exists(data, GroupId(group), Generation(row.generation)):
        return False
    if log.reader(GroupId(group)).start() != row.initial:
        raise Corruption(f"the data of shard {group} is gone and its log is cut; take another survivor")
    return True


def _older(group: int) -> Corruption:
    return Corruption(f"the data of shard {group} is older than its log; take another survivor")


def _replay(log: LogStore, data: Engine, group: int, generation: int, say: Callable[[str], None]) -> None:
    """Apply all that the log holds; changes of members are passed over, for there are no others any more."""
    store = Store(data, GroupId(group), Generation(generation), NodeId(0))
    reader = log.reader(GroupId(group))
    # What was applied was committed, if only by half; the durable commit index isn't written with the data.
    last, commit = reader.last()[0], max(reader.hard_state.commit, store.index + store.partial)
    if store.index < reader.start()[0]:
        raise _older(group)
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

"""A data directory made from a backup: one node of a new cluster, as if it had been stopped a moment ago.

Every node of the new cluster is restored by itself, from the same files and the same `--initial-cluster` (``site``).
The cluster is another one than the one that was backed up: its nodes must not talk to that one's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from nebuladb.env import probe
from nebuladb.errors import ConfigurationError, Corruption
from nebuladb.ids import GroupId
from nebuladb.kv.importer import Importer, Target
from nebuladb.kv.increment import IncrementTarget
from nebuladb.kv.store import Store
from nebuladb.node.backup import BackupReader, Manifest, ShardPart, compare
from nebuladb.node.identity import FOUNDING_FILE, IDENTITY_FILE, Founder, Founding, Identity
from nebuladb.server.directory import VOTING
from nebuladb.server.site import FIRST_GENERATION, MAX_REVISION, Site, derived_id, restored_id
from nebuladb.storage.engine import Engine
from nebuladb.storage.files import DRAFT, sync_name, write_durably
from nebuladb.storage.lock import PID_BYTES, DirectoryLock
from nebuladb.storage.log import LogStore
from nebuladb.storage.owner import DATABASES, DOCUMENTS, LOCK_FILE, give, unusable
from nebuladb.storage.rocks import RocksEngine

SKIPPED_GROUPS: Final = 10_000
"""Ids of groups that the old cluster may have issued since the backup. A group's id has 23 bits in those of its leases,
which is enough for 800 restores, each of a backup of the one before."""

MADE: Final = (IDENTITY_FILE, *DOCUMENTS, *(name + DRAFT for name in DOCUMENTS), *DATABASES)
"""What there may be of a restore that failed. The identity goes first: a directory without it is nobody's."""
NOTHING: Final = frozenset({LOCK_FILE, "lost+found"})
"""What an empty directory may have: a lock stays for ever, and a file system has a place of its own where it begins."""

Progress = Callable[[int], None]


class Wanted(NamedTuple):
    """The node that a backup shall become."""

    name: str
    members: Mapping[str, str]
    """Name → peer address of all nodes of the new cluster, this one among them."""
    token: str = ""
    """Goes into the new cluster's id: with another token the same backup and nodes make another cluster."""
    bump: int = 0
    """Every shard's revision rises by so much, so that whoever remembers one from the old cluster never sees it again
    with other data; and `SKIPPED_GROUPS` ids of groups are not issued, for the same reason."""
    mark_compacted: bool = False
    """What is up to the new revision counts as compacted: watches from the old cluster are canceled, not continued.
    Ids of groups are skipped, likewise."""

    @property
    def parting(self) -> bool:
        """Whether what is remembered from the old cluster shall not be taken for the new one's."""
        return bool(self.bump) or self.mark_compacted

    def cluster(self, backup: str) -> int:
        """The id of the new cluster, of the backup's name and what must be the same on all its nodes."""
        texts = [f"{node}={at}" for node, at in sorted(self.members.items())]
        if self.parting:
            texts.append(f"bump={self.bump} mark-compacted={self.mark_compacted}")
        return derived_id(backup, self.token, *texts)


def restore(
    files: Sequence[Path], directory: Path, wanted: Wanted, progress: Progress = lambda size: None
) -> list[ShardPart]:
    """Make `directory`, which must be empty, from a backup and those that build on it, in this order.

    A keyspace that was dropped while the last file was made is left out. What root makes is the directory's owner's.
    Returns the shards as they are then. Raises `ConfigurationError`, `IdentityError` if a node or another restore has
    the directory, `Corruption`, `StoreError` or `OSError`; then the directory is as it was, but for its lock's file.
    After a kill it has no identity, so no node starts from it: empty it before another try.
    """
    if wanted.name not in wanted.members:
        raise ConfigurationError(f"name: {wanted.name!r} is not one of the nodes {', '.join(wanted.members)}")
    if wanted.bump > MAX_REVISION:
        raise ConfigurationError(f"bump-revision: {wanted.bump} is more than {MAX_REVISION}, the highest revision")
    made, lock = _locked(directory)
    try:
        _check_empty(directory)
        try:
            parts = _make(files, directory, wanted, progress)
            give(directory)
            return parts
        except BaseException:
            _remove_made(directory)
            if made:
                with suppress(OSError):  # somebody put something in
                    (directory / LOCK_FILE).unlink()
                    directory.rmdir()
            raise
    finally:
        lock.release()


def _locked(directory: Path) -> tuple[bool, DirectoryLock]:
    """The directory, made if there is none (True then), and held: no other restore and no node may begin in it."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir()
            made = True
        except FileExistsError:
            made = False
            _check_lockable(directory)
        return made, DirectoryLock(directory, give=True)
    except OSError as error:
        raise unusable(directory, error) from error


def _check_lockable(directory: Path) -> None:
    """Refuse one that isn't empty before anything is written there, unless who holds it is the better reason."""
    try:
        _check_empty(directory)
    except ConfigurationError:
        if not _held(directory / LOCK_FILE):
            raise


def _held(lock: Path) -> bool:
    """Whether a node, or another restore, holds it. Leaves it as it is."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # there is none
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)


def _remove_made(directory: Path) -> None:
    """Remove what `_make` makes, and nothing else."""
    for name in MADE:
        entry = directory / name
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _check_empty(directory: Path) -> None:
    found = {entry.name for entry in directory.iterdir()} - NOTHING
    lock = directory / LOCK_FILE
    if lock.is_symlink() or (lock.exists() and not _is_lock(lock)):
        found.add(LOCK_FILE)
    if "data" in found and IDENTITY_FILE not in found:
        raise ConfigurationError(
            f"data-dir: {directory} has what an interrupted restore left, which no node starts from: empty it first"
        )
    if found:
        raise ConfigurationError(f"data-dir: {directory} is not empty; name a new one")


def _is_lock(path: Path) -> bool:
    """Whether it is what a `DirectoryLock` leaves: with anything else in it, it is somebody's file."""
    if not path.is_file() or path.stat().st_size > PID_BYTES:
        return False
    content = path.read_bytes().strip()
    return not content or content.isdigit()


def _make(files: Sequence[Path], directory: Path, wanted: Wanted, progress: Progress) -> list[ShardPart]:
    with ExitStack() as stack:
        data = RocksEngine.open_data(directory / "data", patient=True)
        stack.callback(data.close)
        reader, parts = _import(files, data, progress)
        cluster = wanted.cluster(reader.name)
        founders = (Founder(node, restored_id(cluster, node), at) for node, at in sorted(wanted.members.items()))
        founding = Founding(cluster, tuple(founders))
        node = founding.node_of(wanted.name)
        site = Site(data, founding)
        shards = site.placed([part.descriptor for part in parts])
        for shard in shards:
            site.enter(shard, bump=wanted.bump, mark_compacted=wanted.mark_compacted)
        probe("restore: members entered")
        issued, skipped = reader.manifest.next_group, SKIPPED_GROUPS if wanted.parting else 0
        site.write_meta(reader.keyspaces, shards, issued, skip=skipped, alarms=reader.manifest.alarms)
        probe("restore: meta written")
        log = LogStore(RocksEngine.open_log(directory / "raft"))
        stack.callback(log.close)
        site.write_log(log, shards, node)
        probe("restore: log written")
        data.flush()
        probe("restore: data durable")
        log.sync()
        probe("restore: log durable")
        states = [site.state(shard.group) for shard in shards]
    write_durably(directory / FOUNDING_FILE, founding.encode())
    probe("restore: founding written")
    write_durably(directory / VOTING, b"")
    # Last: a directory without it is nobody's.
    write_durably(directory / IDENTITY_FILE, Identity(node, wanted.name, cluster).encode())
    sync_name(directory)
    probe("restore: identity written")
    return [
        ShardPart(shard, state.index, state.revision, state.floor, state.keys, state.size)
        for shard, state in zip(shards, states, strict=True)
    ]


def _import(files: Sequence[Path], data: Engine, progress: Progress) -> tuple[BackupReader, list[ShardPart]]:
    """The rows of all files, each file on top of the one before; the last one, and what is in it."""
    before: BackupReader | None = None
    held = dict[int, ShardPart]()
    for path in files:
        try:
            before, parts = _import_file(path, before, held, data, progress)
        except Corruption as error:
            raise Corruption(f"{path}: {error.message}") from error
        held = {part.descriptor.group: part for part in parts}
    assert before is not None
    return before, parts


def _import_file(
    path: Path, before: BackupReader | None, held: Mapping[int, ShardPart], data: Engine, progress: Progress
) -> tuple[BackupReader, list[ShardPart]]:
    """The rows of one file on top of those of the file `before`, which brought shards to where `held` says."""
    with path.open("rb") as file:
        reader = BackupReader(file, progress)
        if reader.manifest.since not in ("", before.name if before else ""):
            raise Corruption("it doesn't build on the file before it; name all, the oldest first")
        goes_on = before is not None and _one_history(before.manifest, reader.manifest)
        parts = []
        for part, chunks in reader.shards():
            group = GroupId(part.descriptor.group)
            there = held.get(group)
            if goes_on and there is not None and part.index < there.index:
                raise Corruption("it is older than the file before it; name all, the oldest first")
            importer = Importer(_target(data, part, there.revision if there else 0), group, FIRST_GENERATION)
            for chunk in chunks:
                importer.feed(chunk)
                probe("restore: chunk written")
            compare(part, importer)
            probe("restore: shard written")
            parts.append(part)
    written = held.keys() | {part.descriptor.group for part in parts}
    parts = reader.kept(parts)
    for gone in sorted(written - {part.descriptor.group for part in parts}):
        Store.destroy(data, GroupId(gone), FIRST_GENERATION)
    return reader, parts


def _one_history(one: Manifest, other: Manifest) -> bool:
    """Whether both are known to be of the same life of the same cluster, in which no shard's log goes back."""
    return one.life != 0 and (one.cluster, one.life) == (other.cluster, other.life)


def _target(data: Engine, part: ShardPart, held: int) -> Target:
    """Where a shard's rows go: to nothing, or on top of what an earlier file brought."""
    group = GroupId(part.descriptor.group)
    if not part.after:
        Store.destroy(data, group, FIRST_GENERATION)
        return data
    if held != part.after:
        raise Corruption(f"it builds on revision {part.after} of shard {group}; there is {held}")
    return IncrementTarget(data, group, FIRST_GENERATION)

"""A node's data directory: the lock, the documents that say who it is, and its two databases (S14, S18).

::

    LOCK            held while a nebulad runs
    identity.json   node id, name and, once founded, cluster id
    founding.json   the founding document, the same on all founding nodes
    joined.json     of a node that joined later: the same document, its id, and where the meta group was
    voting          raft/ holds votes, and must not be found without its rows; in it, the cluster's life, once known
    raft/           RocksDB: log, hard states, registry; WAL on
    data/           RocksDB: the groups' rows; no WAL, the log replays
    data.damaged/   the last data/ that could not be used, if there was one
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

import structlog

from nebuladb.env import probe
from nebuladb.errors import DiskFull, IdentityError, StoreError
from nebuladb.node.identity import FOUNDING_FILE, IDENTITY_FILE, Founding, Identity
from nebuladb.node.joined import JOINED_FILE, Joined
from nebuladb.node.memory import MemoryPlan
from nebuladb.node.starting import only_copies
from nebuladb.server.lifecycle import PidFile
from nebuladb.server.space import BALLAST_FILE
from nebuladb.storage.files import FULL, exists, read, sync_directory, sync_name, unwritten, write_durably
from nebuladb.storage.lock import DirectoryLock
from nebuladb.storage.log import LogStore
from nebuladb.storage.owner import check_access, unusable
from nebuladb.storage.rocks import RocksEngine, RocksMemory
from nebuladb.storage.rocks_errors import is_damage
from nebuladb.storage.sealed import sealed, unsealed

VOTING: Final = "voting"
_LIFE: Final = re.compile(rb"[0-9a-f]{16}")
_UNSEALED: Final = re.compile(rb"[0-9a-f]{16}\n")
"""As builds wrote it that put no checksum there."""
ANOTHER_VOTING: Final = (
    "if its cluster wasn't restored from a backup since this node was last in it, copy the file from another node, or "
    "make it an empty one if there is no other; else empty the directory and restore this node, too"
)
DAMAGED: Final = "data.damaged"
"""Where a data store that can't be used is kept, for whoever wants to look into it: the last one."""


def life_in(text: bytes) -> int | None:
    """What the content of `VOTING` says of which life of the cluster this is; 0: nothing yet. None: it is damaged."""
    if not text:
        return 0
    life = text.removesuffix(b"\n") if _UNSEALED.fullmatch(text) else unsealed(text)
    return int(life, 16) if life is not None and _LIFE.fullmatch(life) else None


def put_data_aside(path: Path, why: str, only: Collection[int]) -> None:
    """Rename the damaged data store of the directory at `path`, durably. It must be closed. The log is whole, and with
    it the node's votes, so a start without data gets it from the others (S15). `only`: what `only_copies` says of the
    log. Raises `StoreError`, and leaves it, if there are any."""
    data, aside = path / "data", path / DAMAGED
    if only:
        raise StoreError(
            f"{data} is damaged: {why}. The log does not go back to its beginning, and no other node that votes has "
            "what is in it, so it stays where it is: restore a backup into an empty directory (docs/operations.md, "
            "Backups), or `nebulad recover` a node that has it and doesn't vote. If the damage was met in use, the "
            "node may be started again, and read, until it is met anew"
        )
    structlog.get_logger("nebulad").error("data store put aside", to=str(aside), why=why)
    try:
        if aside.is_symlink():  # as `data` was
            aside.unlink()
        elif exists(aside):
            shutil.rmtree(aside)
        data.rename(aside)
        sync_directory(path)
    except OSError as error:
        raise StoreError(
            f"data-dir: {data} is damaged, and can't be put aside as {aside}, in the place of an older one: {error}; "
            "move both out of the directory"
        ) from error


class DataDirectory:
    """Locked from construction to `close`."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigurationError` if the directory, or a part of it, can't be used, `IdentityError` if another
        nebulad has it, `DiskFull` where there is no room for it."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(path)
        except OSError as error:
            raise (unwritten(path, error) if error.errno in FULL else unusable(path, error)) from error
        self._log: LogStore | None = None
        """Once it is open."""
        self._pid = PidFile(path)
        try:
            check_access(path)
            self._write_pid()
        except BaseException:
            self._lock.release()
            raise

    def _write_pid(self) -> None:
        """On a disk that others filled to its last byte while no node ran, the ballast is for this."""
        try:
            self._pid.write()
        except DiskFull:
            ballast = self.path / BALLAST_FILE
            if not exists(ballast):
                raise
            structlog.get_logger("nebulad").warning("ballast given up", why="the disk is full at the start")
            ballast.unlink()
            self._pid.write()

    @property
    def founded(self) -> bool:
        """Whether the node was told of its cluster, though the document may be lost."""
        return any(exists(self.path / name) for name in (FOUNDING_FILE, JOINED_FILE, VOTING, "raft", "data"))

    def identity(self, name: str) -> Identity:
        """Who this node is; a fresh directory gets a random id, fsynced before anyone is told (S14).

        Raises `IdentityError` if the directory is another node's, or if a part of it is missing.
        """
        file = self.path / IDENTITY_FILE
        if not exists(file):
            if any(exists(self.path / name) for name in ("raft", "data", FOUNDING_FILE, JOINED_FILE, VOTING)):
                raise IdentityError(f"{self.path} has data but no identity.json; restore it, or use an empty directory")
            identity = Identity(secrets.randbits(63) | 1, name)
            try:
                sync_name(self.path)  # first: a start that finds the document takes it for durable
            except OSError as error:
                raise unwritten(file, error) from error
            self._write(file, identity.encode())
            return identity
        identity = Identity.decode(read(file))
        if identity.name != name:
            raise IdentityError(
                f"{self.path} belongs to node {identity.name!r}, not {name!r}; give each node a directory of its own, "
                f"or start this one with --name {identity.name}"
            )
        if not exists(self.path / "raft") and any(exists(self.path / one) for one in ("data", VOTING)):
            # raft/ is opened first. Without it the node has forgotten its votes (S15).
            raise IdentityError(
                f"the log in {self.path / 'raft'} is gone; restore it, or empty the directory and replace the member: "
                f"`nebula-cli member replace {name}`"
            )
        joined = self.joined()
        if identity.cluster and joined is None and not exists(self.path / FOUNDING_FILE):
            raise IdentityError(
                f"{self.path} has lost {FOUNDING_FILE} (the same on all founding nodes: copy it from one), or "
                f"{JOINED_FILE}, which a node that joined later has instead (restore it); or empty the directory and "
                f"replace the member: `nebula-cli member replace {name}`"
            )
        if joined is not None and not identity.cluster:
            return self.join(identity, joined)  # a crash came between the two documents
        founding = self.founding()
        # `found` writes two documents: a crash may have come between them.
        return identity if founding is None else self.found(identity, founding)

    def founding(self) -> Founding | None:
        """The founding document, if this node has one yet."""
        file = self.path / FOUNDING_FILE
        joined = self.joined()
        if joined is not None:
            return joined.founding
        return Founding.decode(read(file)) if exists(file) else None

    def joined(self) -> Joined | None:
        """What this node was told when it joined, if it isn't one of the founders."""
        file = self.path / JOINED_FILE
        return Joined.decode(read(file)) if exists(file) else None

    def join(self, identity: Identity, joined: Joined) -> Identity:
        """Keep what a member said, durably, before anyone acts on it; the identity that follows from it."""
        self._write(self.path / JOINED_FILE, joined.encode())
        identity = Identity(joined.node, identity.name, joined.founding.cluster)
        self._write(self.path / IDENTITY_FILE, identity.encode())
        return identity

    def found(self, identity: Identity, founding: Founding) -> Identity:
        """Keep the founding document, durably, before anyone acts on it. Raises `IdentityError` if there is another."""
        known = self.founding()
        if known is not None and known != founding:
            raise IdentityError(f"{self.path} holds another founding document; one directory, one cluster")
        if identity.cluster not in (0, founding.cluster):
            raise IdentityError(
                f"{self.path} belongs to cluster {identity.cluster:016x}, the founding document is of "
                f"{founding.cluster:016x}; one directory, one cluster"
            )
        if known is None:
            self._write(self.path / FOUNDING_FILE, founding.encode())
        if not identity.cluster:
            identity = identity._replace(cluster=founding.cluster)
            self._write(self.path / IDENTITY_FILE, identity.encode())
        return identity

    def open_log(self, plan: MemoryPlan, memory: RocksMemory) -> LogStore:
        """Open ``raft/`` and check every log in it. Raises `Corruption` (S34), and `IdentityError` if it is empty and
        was not: the node has forgotten its votes (S15)."""
        engine = RocksEngine.open_log(self.path / "raft", memtable_bytes=plan.log_memtable, memory=memory)
        log = LogStore(engine, plan.recent_entries)
        try:
            if log.registry():
                self.mark_voting()
            elif exists(self.path / VOTING):
                raise IdentityError(
                    f"the log in {self.path / 'raft'} is empty, and was in use: this node forgot its votes and must "
                    "not come back as it is; restore the log, or empty the directory and replace the member: "
                    "`nebula-cli member replace`"
                )
        except BaseException:
            log.close()
            raise
        self._log = log
        return log

    def mark_voting(self) -> None:
        """From now on the log holds votes: keep that it does, durably, beside it. The registry's first row must be
        durable before, so that no crash leaves the one without the other. Raises `StoreError` or `DiskFull`."""
        if not exists(self.path / VOTING):
            self._write(self.path / VOTING, b"")

    def life(self) -> int:
        """Which life of the cluster this node was in last, as far as it knows; else 0. Its data may not say so yet: it
        is behind, until somebody tells this node what is committed, and who may is the question."""
        file = self.path / VOTING
        text = read(file) if exists(file) else b""
        if (life := life_in(text)) is None:
            raise IdentityError(f"{file} is damaged; {ANOTHER_VOTING}")
        return life

    def keep_life(self, life: int) -> None:
        """Keep, durably, which life of the cluster this node is in, for `life`. Raises `StoreError` or `DiskFull`."""
        self._write(self.path / VOTING, sealed(b"%016x" % life))

    def _write(self, file: Path, data: bytes) -> None:
        """Durably. Raises `StoreError` or `DiskFull`."""
        try:
            write_durably(file, data)
        except OSError as error:
            raise unwritten(file, error) from error

    def open_data(self, plan: MemoryPlan, memory: RocksMemory) -> RocksEngine:
        """Open ``data/``. If it is damaged so that it can't be opened, it is put aside, and an empty one opened, if the
        log was opened before and says that this may be. Raises `StoreError`."""
        try:
            return RocksEngine.open_data(self.path / "data", memtable_bytes=plan.data_memtable, memory=memory)
        except StoreError as error:
            if not is_damage(error):
                raise
            probe("data store can't be opened")
            put_data_aside(self.path, error.message, only_copies(self._log) if self._log else ())
            return RocksEngine.open_data(self.path / "data", memtable_bytes=plan.data_memtable, memory=memory)

    def close(self) -> None:
        """Let others have it. The databases must be closed."""
        self._pid.remove()
        self._lock.release()

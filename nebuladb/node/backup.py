"""The file of a backup: every shard's state as chunks (``kv.chunk``), between a manifest and a checksum of the whole.

Layout (``docs/formats.md``, "Backup file"), big-endian: 16 bytes ``NEBULADB BACKUP\\n``, then frames::

    u8 kind | u32 length | payload

MANIFEST first, then for each shard a SHARD and its CHUNKs, and END last: SHA-256 of all before it, which is also the
backup's name for a later one that builds on it. GONE, where a SHARD may be, says that a keyspace was dropped while it
was saved: the backup is without it, whatever of it came before. Of every other keyspace all shards are there, or the
backup is not taken. MANIFEST, SHARD and GONE are canonical JSON.

What etcd's Snapshot sends goes on: zeros to a multiple of 512 bytes, and SHA-256 of all before it, by which etcdctl
knows a snapshot that came in whole. A reader takes both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import IO, Any, Final, NamedTuple

from nebuladb.errors import Corruption, InvariantViolation
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.importer import Importer
from nebuladb.node.declared import DeclaredAlarm
from nebuladb.shard import Descriptor, Keyspace, RoutingTable
from nebuladb.shard.canonical import canonical
from nebuladb.storage.engine import Batch

MAGIC: Final = b"NEBULADB BACKUP\n"
BACKUP_FORMAT: Final = 2
READABLE: Final = (1, BACKUP_FORMAT)
"""Format 1 had no GONE."""
MAX_FRAME: Final = 8 << 20
"""Of what a reader takes: a chunk is smaller, and so is a manifest of 8,192 keyspaces' names."""
SECTOR_BYTES: Final = 512
"""What etcdctl takes for a snapshot is a multiple of this long, and a digest longer."""
_FRAME: Final = Struct(">BI")


class FrameKind(IntEnum):
    """What a frame holds."""

    MANIFEST = 1
    SHARD = 2
    CHUNK = 3
    END = 4
    GONE = 5


class Manifest(NamedTuple):
    """What the backup is of."""

    cluster: int
    version: str
    """Of the nebulad that made it."""
    keyspaces: tuple[Keyspace, ...]
    since: str = ""
    """Name of the backup that it builds on; empty: it stands alone."""
    life: int = 0
    """Which life of the cluster: later backups build on it only in the same one. 0: it wasn't known."""
    next_group: int = 0
    """The next id of a group that the cluster would have issued. 0: it isn't known."""
    alarms: tuple[DeclaredAlarm, ...] = ()

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical(
            {
                "alarms": [alarm.key.decode() for alarm in self.alarms],
                "cluster": f"{self.cluster:016x}",
                "format": BACKUP_FORMAT,
                "keyspaces": [keyspace.encode().decode() for keyspace in self.keyspaces],
                "life": f"{self.life:016x}",
                "next_group": self.next_group,
                "since": self.since,
                "version": self.version,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises `Corruption`."""
        fields = _fields(data, "manifest")
        if fields.get("format") not in READABLE:
            raise Corruption(f"the backup has format {fields.get('format')}; this build knows 1 to {BACKUP_FORMAT}")
        try:
            keyspaces = tuple(Keyspace.decode(text.encode()) for text in fields["keyspaces"])
            life, next_group = int(fields.get("life", "0"), 16), int(fields.get("next_group", 0))
            alarms = tuple(DeclaredAlarm.named(text.encode()) for text in fields.get("alarms", ()))
            cluster, version, since = int(fields["cluster"], 16), fields["version"], fields["since"]
            return cls(cluster, version, keyspaces, since, life, next_group, alarms)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Corruption(f"the backup's manifest can't be read: {error}") from error


class ShardPart(NamedTuple):
    """One shard in a backup; its chunks follow."""

    descriptor: Descriptor
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on it
    revision: int
    floor: int
    keys: int
    size: int
    after: int = 0
    """Only changes above this revision are in it, on top of an earlier backup; 0: all of the shard is."""

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical(self._asdict() | {"descriptor": self.descriptor.encode().decode()})

    @classmethod
    def decode(cls, data: bytes) -> ShardPart:
        """Raises `Corruption`."""
        fields = _fields(data, "shard")
        try:
            numbers = [int(fields[name]) for name in cls._fields[1:]]
            return cls(Descriptor.decode(fields["descriptor"].encode()), *numbers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Corruption(f"a shard of the backup can't be read: {error}") from error


class BackupWriter:
    """Makes the file's bytes, piece by piece, in the order of the methods."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, manifest: Manifest) -> bytes:
        """The first bytes."""
        return self._out(MAGIC + _frame(FrameKind.MANIFEST, manifest.encode()))

    def shard(self, part: ShardPart) -> bytes:
        """A shard begins."""
        return self._out(_frame(FrameKind.SHARD, part.encode()))

    def chunk(self, chunk: bytes) -> bytes:
        """One of its chunks."""
        return self._out(_frame(FrameKind.CHUNK, chunk))

    def gone(self, keyspace: str) -> bytes:
        """`keyspace`, of the manifest, was dropped meanwhile; no shard of it may follow."""
        return self._out(_frame(FrameKind.GONE, canonical({"keyspace": keyspace})))

    def end(self) -> bytes:
        """The last bytes."""
        return _frame(FrameKind.END, self._hash.digest())

    def _out(self, data: bytes) -> bytes:
        self._hash.update(data)
        return data


class BackupReader:
    """Reads a file from its beginning to its end, and believes nothing that doesn't check."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], None] = lambda size: None) -> None:
        """`progress` is told bytes that were read. Raises `Corruption` if it doesn't begin like a backup."""
        self._file = file
        self._progress = progress
        self._hash = hashlib.sha256()
        self._size = 0
        self._next: tuple[FrameKind, bytes] | None = None
        self.name = ""
        """Set at the end: SHA-256 of the whole, in hexadecimal."""
        self.gone: set[str] = set()
        """Whole at the end: keyspaces that were dropped meanwhile. Shards of them that have come are to be left out."""
        self._shards: list[Descriptor] = []
        if self._take(len(MAGIC)) != MAGIC:
            raise Corruption("this is no backup of NebulaDB")
        kind, payload = self._frame()
        if kind is not FrameKind.MANIFEST:
            raise Corruption("the backup doesn't begin with a manifest")
        self.manifest = Manifest.decode(payload)

    def shards(self) -> Iterator[tuple[ShardPart, Iterator[bytes]]]:
        """Each shard, and its chunks, which are to be exhausted before the next one. Raises `Corruption`, in the end
        also if a shard of a keyspace is missing that isn't gone."""
        names = {keyspace.name for keyspace in self.manifest.keyspaces}
        while True:
            kind, payload = self._next or self._frame()
            self._next = None
            if kind is FrameKind.END:
                self._complete()
                return
            if kind is FrameKind.GONE:
                name = _fields(payload, "frame of a dropped keyspace").get("keyspace")
                if not isinstance(name, str) or name not in names - self.gone:
                    raise Corruption("the backup says that a keyspace was dropped which is not in it")
                self.gone.add(name)
                continue
            if kind is not FrameKind.SHARD:
                raise Corruption("the backup has a frame out of order")
            part = ShardPart.decode(payload)
            if part.descriptor.keyspace not in names - self.gone:
                raise Corruption(f"shard {part.descriptor.group} of the backup is of a keyspace that is not in it")
            self._shards.append(part.descriptor)
            yield part, self._chunks()

    @property
    def keyspaces(self) -> tuple[Keyspace, ...]:
        """Those that the backup is of: the manifest's, but what is gone."""
        return tuple(keyspace for keyspace in self.manifest.keyspaces if keyspace.name not in self.gone)

    def kept(self, parts: Iterable[ShardPart]) -> list[ShardPart]:
        """Those of `parts` that are of `keyspaces`."""
        return [part for part in parts if part.descriptor.keyspace not in self.gone]

    def _complete(self) -> None:
        shards = [shard for shard in self._shards if shard.keyspace not in self.gone]
        try:
            RoutingTable(self.keyspaces, shards).check()
        except InvariantViolation as error:
            raise Corruption(f"the backup lacks a shard: {error.message}") from error

    def _chunks(self) -> Iterator[bytes]:
        while True:
            kind, payload = self._frame()
            if kind is not FrameKind.CHUNK:
                self._next = kind, payload
                return
            yield payload

    def _frame(self) -> tuple[FrameKind, bytes]:
        digest = self._hash.copy()
        number, length = _FRAME.unpack(self._take(_FRAME.size))
        if length > MAX_FRAME or number not in FrameKind.__members__.values():
            raise Corruption("the backup is damaged: a frame can't be")
        payload = self._take(length)
        if number == FrameKind.END:
            if payload != digest.digest() or not self._ends():
                raise Corruption("the backup is damaged: its checksum is wrong")
            self.name = payload.hex()
        return FrameKind(number), payload

    def _ends(self) -> bool:
        """Whether nothing follows END, or what etcd's clients want and nothing else."""
        digest = self._hash.copy()
        zeros = bytes(-self._size % SECTOR_BYTES)
        digest.update(zeros)
        return self._file.read(SECTOR_BYTES + digest.digest_size + 1) in (b"", zeros + digest.digest())

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise Corruption("the backup is cut short")
        self._hash.update(data)
        self._size += size
        self._progress(size)
        return data


def check(path: Path, progress: Callable[[int], None] = lambda size: None) -> tuple[BackupReader, list[ShardPart]]:
    """Read a backup to its end, every checksum of it; the shards of keyspaces that were not dropped meanwhile. Raises
    `Corruption`."""
    with path.open("rb") as file:
        return examine(file, progress)


def examine(
    file: IO[bytes], progress: Callable[[int], None] = lambda size: None
) -> tuple[BackupReader, list[ShardPart]]:
    """Likewise, an open one."""
    reader = BackupReader(file, progress)
    parts = []
    for part, chunks in reader.shards():
        importer = Importer(_Nowhere(), GroupId(part.descriptor.group), Generation(1))
        for chunk in chunks:
            importer.feed(chunk)
        compare(part, importer)
        parts.append(part)
    return reader, reader.kept(parts)


class _Nowhere:
    """Takes rows and keeps none."""

    def write(self, batch: Batch) -> None: ...


def compare(part: ShardPart, importer: Importer) -> None:
    """Raise `Corruption` unless all of a shard has come in, and it is what was announced."""
    head = importer.head
    if not importer.done or head is None or (head.index, head.revision) != (part.index, part.revision):
        raise Corruption(f"shard {part.descriptor.group} of the backup is not whole")


def _frame(kind: FrameKind, payload: bytes) -> bytes:
    return _FRAME.pack(kind, len(payload)) + payload


def _fields(data: bytes, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise Corruption(f"the backup's {what} can't be read: {error}") from error
    if not isinstance(fields, dict):
        raise Corruption(f"the backup's {what} can't be read")
    return fields

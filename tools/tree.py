"""The demo's own view of a directory and of what the database has of it: paths and SHA-256, none of `load`'s code."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from nebuladb.cli.files import CHUNK, META, parse_key
from nebuladb.client.methods import SCAN
from nebuladb.pb.nebula.v1 import kv_pb2

EXCLUDE: Final = ("site-packages", "dist-packages", "*.pyc.[0-9]*")
"""Other people's packages, and the interpreter's files in the making."""
MAX_PAGE: Final = 16 << 20
SCAN_SECONDS: Final = 300.0


class Digest(NamedTuple):
    """A file's content."""

    size: int
    sha256: str

    @property
    def writes(self) -> int:
        """Revisions that storing it takes: one, or for more than one chunk each of them and the meta row."""
        return 1 if self.size <= CHUNK else -(-self.size // CHUNK) + 1


Manifest = dict[bytes, Digest]
"""Relative path → content."""


def files(root: Path) -> Iterator[tuple[bytes, Path]]:
    """Relative path and place of each regular file below `root`; links are not followed."""
    for folder, directories, names in os.walk(root):
        directories[:] = sorted(name for name in directories if not _excluded(name))
        for name in sorted(names):
            place = Path(folder, name)
            if not _excluded(name) and stat.S_ISREG(place.lstat().st_mode):
                yield os.fsencode(place.relative_to(root)), place


def _excluded(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in EXCLUDE)


def on_disk(place: Path) -> Digest | None:
    """What a file holds now; None if there is none."""
    try:
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return Digest(file.tell(), digest.hexdigest())
    except FileNotFoundError:
        return None


def manifest(root: Path) -> Manifest:
    """Of everything below `root`."""
    return {path: digest for path, place in files(root) if (digest := on_disk(place))}


def in_database(address: str, node_id: int) -> Manifest:
    """What the node at `address` has, by one linearizable scan of `default` over plain gRPC.

    Raises ValueError if another node answers: the SDK would find another one if this one failed, so it isn't used here.
    """
    hashes: dict[bytes, hashlib._Hash] = {}
    sizes: dict[bytes, int] = {}
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", MAX_PAGE)]) as channel:
        scan = channel.unary_stream(
            SCAN.path,
            request_serializer=kv_pb2.ScanRequest.SerializeToString,
            response_deserializer=SCAN.answer.FromString,
        )
        for page in scan(kv_pb2.ScanRequest(keyspace="default"), timeout=SCAN_SECONDS):
            if page.header.node_id != node_id:
                raise ValueError(f"node {page.header.node_id:016x} answered at {address}, not {node_id:016x}")
            for row in page.kvs:
                path, what = parse_key(row.key)
                if what != META:
                    hashes.setdefault(path, hashlib.sha256()).update(row.value)
                    sizes[path] = sizes.get(path, 0) + len(row.value)
    return {path: Digest(sizes[path], digest.hexdigest()) for path, digest in hashes.items()}


def differences(expected: Manifest, found: Manifest, root: Path) -> list[bytes]:
    """Paths at which the database has something else than the disk.

    A file that was changed since `expected` was made, by somebody else, is judged by what it holds now.
    """
    return [
        path
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path) and on_disk(root / os.fsdecode(path)) != found.get(path)
    ]

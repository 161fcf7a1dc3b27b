"""Who a node is: a random id in its data directory, and the cluster that it belongs to (S14, S18).

Two documents, each canonical JSON and a line with its CRC-32 in hex (``docs/formats.md``, "Identity", "Founding
document"). Reading and writing files is the caller's (``server.directory``); here are the values and their bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from zlib import crc32

from nebuladb.errors import IdentityError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.shard.canonical import canonical

IDENTITY_FILE: Final = "identity.json"
FOUNDING_FILE: Final = "founding.json"
IDENTITY_FORMAT: Final = 1
FOUNDING_FORMAT: Final = 1


class Identity(NamedTuple):
    """`node` is drawn once and never changes; `cluster` is 0 until the node has a founding document."""

    node: int
    name: str
    cluster: int = 0

    def encode(self) -> bytes:
        """The bytes of ``identity.json``."""
        fields = {"cluster": _hex(self.cluster), "format": IDENTITY_FORMAT, "name": self.name, "node": _hex(self.node)}
        return seal(fields)

    @classmethod
    def decode(cls, data: bytes) -> Identity:
        """Raises `IdentityError`."""
        fields = open_document(data, IDENTITY_FILE, IDENTITY_FORMAT)
        return cls(int(fields["node"], 16), str(fields["name"]), int(fields["cluster"], 16))


class Founder(NamedTuple):
    """One node of the founding document."""

    name: str
    node: int
    peer_address: str


class Founding(NamedTuple):
    """What all founding nodes start from, the same on each: the cluster's id and its first nodes, by name."""

    cluster: int
    nodes: tuple[Founder, ...]

    def encode(self) -> bytes:
        """The bytes of ``founding.json``, which travel between nodes as they are."""
        nodes = [{"name": node.name, "node": _hex(node.node), "peer": node.peer_address} for node in self.nodes]
        return seal({"cluster": _hex(self.cluster), "format": FOUNDING_FORMAT, "nodes": nodes})

    @classmethod
    def decode(cls, data: bytes) -> Founding:
        """Raises `IdentityError`."""
        fields = open_document(data, FOUNDING_FILE, FOUNDING_FORMAT)
        nodes = (Founder(node["name"], int(node["node"], 16), node["peer"]) for node in fields["nodes"])
        return cls(int(fields["cluster"], 16), tuple(nodes))

    def replicas(self, group: int) -> dict[int, int]:
        """Replica id → node id of a group of the founding; ids 1…n belong to the meta group, by name (S16)."""
        first = {META_GROUP: 0, DEFAULT_GROUP: 1, ETCD_GROUP: 2}[group] * len(self.nodes) + 1  # type: ignore[index]  # ids are ints
        return {first + place: node.node for place, node in enumerate(self.nodes)}

    @property
    def next_replica(self) -> int:
        """The first replica id that the meta group may issue."""
        return 3 * len(self.nodes) + 1

    def node_of(self, name: str) -> int:
        """The id under which a founding node's name is known; 0 = not a founding node's."""
        return next((node.node for node in self.nodes if node.name == name), 0)


def initial_cluster_hash(members: Mapping[str, str]) -> bytes:
    """SHA-256 of the sorted ``--initial-cluster``, by which nodes see that they were told the same."""
    return hashlib.sha256(",".join(f"{name}={members[name]}" for name in sorted(members)).encode()).digest()


def _hex(number: int) -> str:
    return f"{number:016x}"


def seal(fields: dict[str, Any]) -> bytes:
    """A document's bytes: canonical JSON and its CRC-32."""
    body = canonical(fields)
    return body + b"\n%08x\n" % crc32(body)


def open_document(data: bytes, name: str, version: int) -> dict[str, Any]:
    """A document's fields. Raises `IdentityError` if it is damaged or of another format."""
    body, _, crc = data.rstrip(b"\n").rpartition(b"\n")
    if crc != b"%08x" % crc32(body):
        raise IdentityError(f"{name} is damaged; restore this node as a new member with an empty data directory")
    fields: dict[str, Any] = json.loads(body)
    if fields.get("format") != version:
        raise IdentityError(f"{name} has format {fields.get('format')}; this build of nebulad knows {version}")
    return fields

"""What the meta group holds, as values: nodes, keyspaces and shard descriptors, and the entry that founds them.

The meta group is an ordinary group (1) with an ordinary store; its rows are keys (``docs/formats.md``, "Meta rows")::

    cluster/version            the cluster version, decimal: which entry kinds may be proposed (S22)
    issue/replica              the next replica id to issue, decimal (S16)
    keyspace/NAME              a `Keyspace`
    node/<id, 16 hex digits>   a `NodeRecord`
    shard/<group, 16 hex>      a `Descriptor`
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP
from nebuladb.kv.answer import KeyValue
from nebuladb.node.identity import Founding
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Descriptor, Keyspace, Partitioning, RoutingTable

CLUSTER_VERSION: Final = 1
VERSION_KEY: Final = b"cluster/version"
REPLICA_KEY: Final = b"issue/replica"
KEYSPACE_PREFIX: Final = b"keyspace/"
NODE_PREFIX: Final = b"node/"
SHARD_PREFIX: Final = b"shard/"
NODE_FORMAT: Final = 1
DEFAULT: Final = "default"
ETCD: Final = "etcd"
INITIAL: Final = (1, 1)
"""(index, term) at which every founding replica of a group begins."""


class NodeRecord(NamedTuple):
    """A member of the cluster; its addresses are where others reach it."""

    node: int
    name: str
    peer_address: str
    client_address: str = ""

    @property
    def key(self) -> bytes:
        """Its row's key."""
        return NODE_PREFIX + b"%016x" % self.node

    def encode(self) -> bytes:
        """Canonical JSON."""
        fields = {
            "client": self.client_address,
            "format": NODE_FORMAT,
            "name": self.name,
            "node": f"{self.node:016x}",
            "peer": self.peer_address,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> NodeRecord:
        """Raises `Corruption`."""
        try:
            fields = json.loads(data)
            if fields["format"] != NODE_FORMAT:
                raise Corruption(f"a node's record has format {fields['format']}; this build knows {NODE_FORMAT}")
            return cls(int(fields["node"], 16), fields["name"], fields["peer"], fields["client"])
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"a node's record can't be read: {error}") from error


class Meta:
    """A picture of the meta group at one revision. Rebuilt whole when it changes: it is small and changes rarely."""

    def __init__(self, rows: Iterable[KeyValue] = ()) -> None:
        self.version = 0
        self.nodes: dict[int, NodeRecord] = {}
        keyspaces, descriptors = [], []
        for row in rows:
            if row.key == VERSION_KEY:
                self.version = int(row.value)
            elif row.key.startswith(NODE_PREFIX):
                record = NodeRecord.decode(row.value)
                self.nodes[record.node] = record
            elif row.key.startswith(KEYSPACE_PREFIX):
                keyspaces.append(Keyspace.decode(row.value))
            elif row.key.startswith(SHARD_PREFIX):
                descriptors.append(Descriptor.decode(row.value))
        self.routing = RoutingTable(keyspaces, descriptors)
        self.routing.check()

    def client_address(self, node: int) -> str:
        """Where clients reach a node; empty if it isn't known."""
        record = self.nodes.get(node)
        return record.client_address if record else ""


def founding_shards(founding: Founding) -> list[Descriptor]:
    """The shards of a new cluster: one of `default`, one of `etcd`, each with a replica on every founding node."""
    return [
        Descriptor(group, name, 1, b"", b"", (0, 0), tuple(sorted(founding.replicas(group).items())), INITIAL)
        for group, name in ((DEFAULT_GROUP, DEFAULT), (ETCD_GROUP, ETCD))
    ]


def founding_request(founding: Founding) -> bytes:
    """The first leader's one idempotent entry: a transaction that does nothing if the cluster has a version."""
    request = kv_pb2.TxnRequest()
    request.compare.add(target=kv_pb2.Compare.VERSION, key=VERSION_KEY, number=0)
    puts = {
        VERSION_KEY: b"%d" % CLUSTER_VERSION,
        REPLICA_KEY: b"%d" % founding.next_replica,
        KEYSPACE_PREFIX + DEFAULT.encode(): Keyspace(DEFAULT, Partitioning.RANGE).encode(),
        KEYSPACE_PREFIX + ETCD.encode(): Keyspace(ETCD, Partitioning.SINGLE).encode(),
    }
    for node in founding.nodes:
        record = NodeRecord(node.node, node.name, node.peer_address)
        puts[record.key] = record.encode()
    for shard in founding_shards(founding):
        puts[SHARD_PREFIX + b"%016x" % shard.group] = shard.encode()
    for key, value in sorted(puts.items()):
        request.success.add(put=kv_pb2.TxnPut(key=key, value=value))
    return request.SerializeToString()

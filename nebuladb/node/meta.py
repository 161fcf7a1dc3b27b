"""What the meta group holds, as values: nodes, keyspaces and shard descriptors, and the entry that founds them.

The meta group is an ordinary group (1) with an ordinary store; its rows are keys (``docs/formats.md``, "Meta rows")::

    alarm/KIND/<id, 16 hex>    a `DeclaredAlarm`
    cluster/life               a random number, 16 hex, that every life of a cluster has anew: see `life_request`
    cluster/version            the cluster version, decimal: which entry kinds may be proposed (S22)
    issue/group                the next group id to issue, decimal; absent: `FIRST_GROUP`
    issue/node                 how many node ids were issued, decimal: every issue steps it (S14)
    issue/replica              the next replica id to issue, decimal (S16)
    keyspace/NAME              a `Keyspace`
    node/<id, 16 hex digits>   a `NodeRecord`
    removed/<group>/<replica>  a `Removal`, both ids in 16 hex digits
    shard/<group, 16 hex>      a `Descriptor`; the meta group's own, once its replicas are others than the founders
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from typing import Any, Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import Change
from nebuladb.kv.store import Store
from nebuladb.node.declared import ALARM_PREFIX, DeclaredAlarm
from nebuladb.node.frame import CLUSTER_VERSION
from nebuladb.node.identity import Founding
from nebuladb.node.record import NODE_PREFIX, NodeRecord, NodeState
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Descriptor, Keyspace, KeyspaceState, Partitioning, RoutingTable
from nebuladb.shard.canonical import canonical
from nebuladb.shard.layout import INITIAL

LIFE_KEY: Final = b"cluster/life"
VERSION_KEY: Final = b"cluster/version"
GROUP_KEY: Final = b"issue/group"
REPLICA_KEY: Final = b"issue/replica"
NODE_KEY: Final = b"issue/node"
KEYSPACE_PREFIX: Final = b"keyspace/"
REMOVED_PREFIX: Final = b"removed/"
SHARD_PREFIX: Final = b"shard/"
REMOVAL_FORMAT: Final = 1
FIRST_GROUP: Final = 4
"""Below are the meta group, `default` and `etcd`."""
DEFAULT: Final = "default"
ETCD: Final = "etcd"


class Removal(NamedTuple):
    """A committed order to `node` to destroy its replica `replica` of `group` (S17). The row goes when that is done."""

    group: int
    replica: int
    node: int

    @property
    def key(self) -> bytes:
        """Its row's key."""
        return REMOVED_PREFIX + b"%016x/%016x" % (self.group, self.replica)

    def encode(self) -> bytes:
        """Canonical JSON."""
        fields = {"format": REMOVAL_FORMAT, "group": self.group, "node": self.node, "replica": self.replica}
        return canonical(fields)

    @classmethod
    def decode(cls, data: bytes) -> Removal:
        """Raises `Corruption`."""
        try:
            fields = json.loads(data)
            if fields["format"] != REMOVAL_FORMAT:
                raise Corruption(f"a removal has format {fields['format']}; this build knows {REMOVAL_FORMAT}")
            return cls(int(fields["group"]), int(fields["replica"]), int(fields["node"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"a removal can't be read: {error}") from error


_Value = int | Keyspace | Descriptor | NodeRecord | Removal | DeclaredAlarm


class Meta:
    """An immutable picture of the meta group at one revision."""

    def __init__(self, rows: Iterable[KeyValue] = ()) -> None:
        self._orders: dict[int, dict[bytes, Removal]] = {}
        """Node → key → an order. Apart from the rest, as descriptors are: they may be many, and most changes are of
        nothing else."""
        self._descriptors: dict[bytes, tuple[int, Descriptor]] = {}
        """Key → revision and descriptor."""
        self._rows: dict[bytes, tuple[int, _Value | None]] = {}
        """Likewise, of all others."""
        for row in rows:
            value = _decode(row.key, row.value)
            if isinstance(value, Removal):
                self._orders.setdefault(value.node, {})[row.key] = value
            elif isinstance(value, Descriptor):
                self._descriptors[row.key] = row.mod_revision, value
            else:
                self._rows[row.key] = row.mod_revision, value
        self._fill()
        self._place()
        self.routing = RoutingTable((), ())
        self._route({shard.keyspace for shard in self.shards.values()})

    def after(self, changes: Iterable[Change]) -> Meta:
        """The picture after `changes`, which are all there were since this one. Only they are decoded; what they don't
        concern is shared by both pictures."""
        meta = copy(self)
        orders, shards, others = list[Change](), list[Change](), list[Change]()
        for change in changes:
            order, shard = change.key.startswith(REMOVED_PREFIX), change.key.startswith(SHARD_PREFIX)
            (orders if order else shards if shard else others).append(change)
        if orders:
            meta._carry(orders)
        if others:
            meta._rows = _changed(self._rows, others)
            meta._fill()
        if shards:
            meta._descriptors = _changed(self._descriptors, shards)
            meta._place()
        if shards or others:
            old, new = self._descriptors, meta._descriptors
            meta._route({of[one.key][1].keyspace for one in shards for of in (old, new) if one.key in of})
        return meta

    def _carry(self, changes: Iterable[Change]) -> None:
        """Take over changes of orders; those of nodes that they don't concern aren't looked at."""
        orders, fresh = dict(self._orders), set[int]()
        for change in changes:
            new = None if change.deleted else Removal.decode(change.record.value)
            node = new.node if new else next((node for node, of_it in orders.items() if change.key in of_it), None)
            if node is None:
                continue
            if node not in fresh:
                fresh.add(node)
                orders[node] = dict(orders.get(node, {}))
            if new:
                orders[node][change.key] = new
            else:
                del orders[node][change.key]
        self._orders = {node: of_it for node, of_it in orders.items() if of_it}

    @property
    def ordered(self) -> Iterable[int]:
        """The nodes that have orders."""
        return self._orders.keys()

    def orders(self, node: int) -> Collection[Removal]:
        """What `node` is to destroy, and hasn't, as far as the cluster knows."""
        return self._orders.get(node, {}).values()

    @property
    def removals(self) -> list[Removal]:
        """The orders of all nodes."""
        return [removal for orders in self._orders.values() for removal in orders.values()]

    def _fill(self) -> None:
        """What follows from the rows without descriptors."""
        self.nodes: dict[int, NodeRecord] = {}
        """All that are, or are about to be, or still are members."""
        self.removed: dict[int, NodeRecord] = {}
        self.keyspaces: dict[str, Keyspace] = {}
        """All, also those that are being created or dropped; `routing` has the ready ones."""
        self.declared: list[DeclaredAlarm] = []
        for key in sorted(self._rows):
            value = self._rows[key][1]
            if isinstance(value, NodeRecord):
                (self.removed if value.state is NodeState.REMOVED else self.nodes)[value.node] = value
            elif isinstance(value, Keyspace):
                self.keyspaces[value.name] = value
            elif isinstance(value, DeclaredAlarm):
                self.declared.append(value)
        self.learners = frozenset(node for node, record in self.nodes.items() if record.learner)
        """Those that nobody has promoted."""
        self.alarmed = frozenset(alarm.kind for alarm in self.declared)
        self.version = self._number(VERSION_KEY, 0)
        self.life = self._number(LIFE_KEY, 0)
        """Which life of the cluster this is; 0: it isn't known."""
        self.next_group = self._number(GROUP_KEY, FIRST_GROUP)
        self.next_replica = self._number(REPLICA_KEY, 0)
        self.issued_nodes = self._number(NODE_KEY, 0)

    def _place(self) -> None:
        """What follows from the descriptors."""
        found = [self._descriptors[key][1] for key in sorted(self._descriptors)]
        self.shards: dict[int, Descriptor] = {shard.group: shard for shard in found if shard.group != META_GROUP}
        """By group, all; the meta group is none of them."""
        self.own: Descriptor | None = next((shard for shard in found if shard.group == META_GROUP), None)
        """The meta group's, once it was changed."""
        self.told = (*((self.own,) if self.own else ()), *self.shards.values())
        """The descriptors of all groups that it tells of: its own, once that has changed, and the shards."""
        self.changing = [shard.group for shard in self.told if shard.roles]
        """Groups whose replicas aren't plain voters all."""

    def _route(self, concerned: Collection[str]) -> None:
        """What follows from both: shards of the `concerned` keyspaces have changed."""
        ready = {name: found for name, found in self.keyspaces.items() if found.state is KeyspaceState.READY}
        before = self.routing.keyspaces
        changed = {name for name, found in ready.items() if name in concerned or before.get(name) != found}
        shards = [shard for shard in self.shards.values() if shard.keyspace in changed] if changed else []
        self.routing = self.routing.after(ready.values(), changed, shards)

    def descriptor(self, group: int) -> Descriptor | None:
        """Of a shard, or of the meta group itself."""
        return self.own if group == META_GROUP else self.shards.get(group)

    def gone(self, group: int, replica: int) -> bool:
        """Whether `replica` was one of `group` and is none any more, for ever: it was issued, since ids are issued in
        order, and a descriptor lists a replica from then until it is gone (S16)."""
        found = self.descriptor(group)
        return found is not None and replica < self.next_replica and replica not in dict(found.replicas)

    def name(self, node: int) -> str:
        """A node's name, or its id."""
        record = self.nodes.get(node) or self.removed.get(node)
        return record.name if record else f"{node:016x}"

    def _number(self, key: bytes, absent: int) -> int:
        value = self._rows[key][1] if key in self._rows else absent
        return value if isinstance(value, int) else absent

    def mod(self, key: bytes) -> int:
        """The revision that changed a row last, for a compare; 0: it isn't there."""
        found = self._descriptors.get(key) or self._rows.get(key)
        return found[0] if found else 0

    def client_address(self, node: int) -> str:
        """Where clients reach a node; empty if it isn't known."""
        record = self.nodes.get(node)
        return record.client_address if record else ""


def read_meta(store: Store) -> Meta:
    """The picture that the meta group's store has now, all pages of it at once. Raises what the store does."""
    rows: list[KeyValue] = []
    start = b"\0"
    while start:
        page = store.scan(start)
        rows += page.kvs
        start = page.cursor
    return Meta(rows)


def _changed(rows: Mapping[bytes, tuple[int, Any]], changes: Iterable[Change]) -> dict[bytes, tuple[int, Any]]:
    """`rows` after `changes`."""
    changed = dict(rows)
    for change in changes:
        if change.deleted:
            changed.pop(change.key, None)
        else:
            changed[change.key] = change.revision, _decode(change.key, change.record.value)
    return changed


def _decode(key: bytes, value: bytes) -> _Value | None:
    """A row's value; None for a row that this build doesn't know."""
    if key in (VERSION_KEY, GROUP_KEY, NODE_KEY, REPLICA_KEY):
        return int(value)
    if key == LIFE_KEY:
        return int(value, 16)
    if key.startswith(ALARM_PREFIX):
        return DeclaredAlarm.decode(key, value)
    for prefix, kind in _KINDS.items():
        if key.startswith(prefix):
            return kind.decode(value)
    return None


_KINDS: Final[dict[bytes, type[Keyspace | Descriptor | NodeRecord | Removal]]] = {
    KEYSPACE_PREFIX: Keyspace,
    NODE_PREFIX: NodeRecord,
    REMOVED_PREFIX: Removal,
    SHARD_PREFIX: Descriptor,
}


def meta_shard(founding: Founding) -> Descriptor:
    """The meta group, as if it were a shard."""
    return Descriptor(
        META_GROUP, "", 1, b"", b"", (0, 0), tuple(sorted(founding.replicas(META_GROUP).items())), INITIAL
    )


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


def life_request(life: int) -> bytes:
    """A transaction that names the cluster's life, if it has no name.

    A cluster that is restored twice has the same ids both times, and other histories; so what is restored comes without
    this row, and its first leader draws it. By it one knows histories that share only their beginning.
    """
    request = kv_pb2.TxnRequest()
    request.compare.add(target=kv_pb2.Compare.VERSION, key=LIFE_KEY, number=0)
    request.success.add(put=kv_pb2.TxnPut(key=LIFE_KEY, value=b"%016x" % life))
    return request.SerializeToString()

"""Keyspaces that users make and drop: from the picture of meta to the next transaction, as pure functions (S17).

A keyspace begins with its record: state *creating*, and every id that it needs, issued in the same transaction. Its
shards are a function of the record: they are put by as many transactions as it takes, which anyone may repeat at any
time. The last one makes it *ready*; only then it is routed to. Dropping is the same backwards: state *dropping*, then
descriptors turn into removals, one for each replica (the node that has it destroys it and deletes the row), and the
record goes last.

Each transaction compares the modification revisions of what it was planned from. Hence two creators of one name can't
both win, a late transaction of a creation changes nothing once a drop began, and an id is never issued twice. Whoever
drives (the node that took the request; the meta group's leader, where that died) asks for the next step until there is
none; if its driver dies in between, nothing but time is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from nebuladb.errors import InvalidArgument, KeyspaceExists, Unavailable
from nebuladb.kv.limits import MAX_TXN_OPERATIONS
from nebuladb.node.meta import DEFAULT, ETCD, GROUP_KEY, KEYSPACE_PREFIX, REPLICA_KEY, SHARD_PREFIX, Meta, Removal
from nebuladb.node.record import NodeState
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Keyspace, KeyspaceState, Partitioning, Plan, shard_of

MAX_SHARDS: Final = 1_024
"""Of one keyspace."""
MAX_CLUSTER_SHARDS: Final = 8_192
"""Of all keyspaces: every node has a replica of each."""
MAX_NODE_REPLICAS: Final = 2 * MAX_CLUSTER_SHARDS
"""Of one node: what it has, and what it was told to destroy and hasn't, as while it is dead. A drop makes the one into
the other, so it needs no bound of its own; and all that a cluster may have can be dropped and made anew at once."""
MAX_SPLIT_BYTES: Final = 1_024
"""Of one split key: a record with all of them, in hex, must fit into a request."""
MAX_SPLITS_BYTES: Final = 256 << 10
"""Of all split keys together."""
RESERVED: Final = frozenset({DEFAULT, ETCD, "meta"})
_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")


class Spec(NamedTuple):
    """What a user wants."""

    name: str
    partitioning: Partitioning
    shards: int = 1
    splits: tuple[bytes, ...] = ()
    """Range only, ascending: where each shard but the first starts."""


def checked(spec: Spec) -> Spec:
    """`spec`, with the shards of a range counted. Raises `InvalidArgument`."""
    check_name(spec.name)
    if spec.partitioning is Partitioning.RANGE:
        size = sum(map(len, spec.splits))
        if any(not 0 < len(key) <= MAX_SPLIT_BYTES for key in spec.splits) or size > MAX_SPLITS_BYTES:
            raise InvalidArgument(
                f"a split key has 1 to {MAX_SPLIT_BYTES} bytes, and all of them at most {MAX_SPLITS_BYTES}"
            )
        if any(low >= high for low, high in pairwise(spec.splits)):
            raise InvalidArgument("split keys must ascend, none twice")
        spec = spec._replace(shards=len(spec.splits) + 1)
    elif spec.splits:
        raise InvalidArgument("only a range keyspace has split keys")
    elif spec.partitioning is Partitioning.SINGLE and spec.shards != 1:
        raise InvalidArgument("a single keyspace has one shard")
    if not 1 <= spec.shards <= MAX_SHARDS:
        raise InvalidArgument(f"a keyspace has 1 to {MAX_SHARDS} shards, not {spec.shards}")
    return spec


def check_name(name: str) -> None:
    """Raise `InvalidArgument` unless a user may make and drop a keyspace of this name."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument("a keyspace's name has 1 to 64 of a-z, 0-9, dot, underscore and hyphen")
    if name in RESERVED:
        raise InvalidArgument(f"the name {name!r} is the cluster's own: it can be neither created nor dropped")


def create_step(meta: Meta, spec: Spec) -> bytes | None:
    """The next transaction on the way to `spec`, which is `checked`; None: it is ready.

    Raises `KeyspaceExists` if one of this name was made otherwise, `InvalidArgument` if the cluster is full,
    `Unavailable` if a node has too much to destroy still.
    """
    found = meta.keyspaces.get(spec.name)
    if found is None:
        return _begin(meta, spec)
    if found.state is KeyspaceState.DROPPING:
        return _tear_down(meta, found)
    plan = found.plan
    if plan is None or (found.partitioning, plan.shards, plan.splits) != spec[1:]:
        raise KeyspaceExists(
            f"there is a keyspace {spec.name!r} that was created otherwise; see `nebula-cli keyspace describe "
            f"{spec.name}`"
        )
    return None if found.state is KeyspaceState.READY else _build(meta, found)


def drop_step(meta: Meta, name: str) -> bytes | None:
    """The next transaction on the way to no keyspace `name`; None: there is none."""
    found = meta.keyspaces.get(name)
    if found is None:
        return None
    if found.state is KeyspaceState.DROPPING:
        return _tear_down(meta, found)
    key = keyspace_key(name)
    return transaction({key: meta.mod(key)}, {key: found._replace(state=KeyspaceState.DROPPING).encode()})


def unfinished_step(meta: Meta) -> bytes | None:
    """The next transaction of the first keyspace that is half made or half dropped; None: there is none."""
    for _, keyspace in sorted(meta.keyspaces.items()):
        if keyspace.state is KeyspaceState.CREATING:
            return _build(meta, keyspace)
        if keyspace.state is KeyspaceState.DROPPING:
            return _tear_down(meta, keyspace)
    return None


def acknowledgement(removals: Iterable[Removal]) -> bytes:
    """The transaction that says: these replicas, at most `MAX_TXN_OPERATIONS`, are destroyed, for ever."""
    return transaction({}, dict.fromkeys(removal.key for removal in removals))


def keyspace_key(name: str) -> bytes:
    """The key of a keyspace's record."""
    return KEYSPACE_PREFIX + name.encode()


def _begin(meta: Meta, spec: Spec) -> bytes:
    nodes = _nodes(meta)
    if not nodes:
        raise Unavailable("this node does not know the cluster yet; try again")
    _check_room(meta, spec.shards)
    plan = Plan(spec.shards, spec.splits, meta.next_group, meta.next_replica, nodes)
    key = keyspace_key(spec.name)
    # The members too: one that became one meanwhile would have no replica of it, and nobody would see to that.
    planned_from = (GROUP_KEY, REPLICA_KEY, *(record.key for record in meta.nodes.values()))
    return transaction(
        {key: 0, **{source: meta.mod(source) for source in planned_from}},
        {
            key: Keyspace(spec.name, spec.partitioning, KeyspaceState.CREATING, plan).encode(),
            GROUP_KEY: b"%d" % (plan.first_group + plan.shards),
            REPLICA_KEY: b"%d" % (plan.first_replica + plan.shards * len(nodes)),
        },
    )


def _check_room(meta: Meta, shards: int) -> None:
    """Raise `InvalidArgument`, or `Unavailable` where it may help to wait, unless so many more shards may be made."""
    creating = [one.plan for one in meta.keyspaces.values() if one.plan and one.state is KeyspaceState.CREATING]
    groups = (group for plan in creating for group in range(plan.first_group, plan.first_group + plan.shards))
    shards += len(meta.shards) + sum(group not in meta.shards for group in groups)
    if shards > MAX_CLUSTER_SHARDS:
        raise InvalidArgument(f"the cluster would have more than {MAX_CLUSTER_SHARDS} shards; drop a keyspace first")
    for node in meta.ordered:
        if len(meta.orders(node)) + shards > MAX_NODE_REPLICAS:
            raise Unavailable(
                f"node {meta.name(node)} has not destroyed what was dropped, of {len(meta.orders(node))} shards: "
                "start it, or remove it"
            )


def _nodes(meta: Meta) -> tuple[int, ...]:
    """Where a new keyspace's replicas are: on every member, so that each node answers for every key."""
    return tuple(sorted(node for node, record in meta.nodes.items() if record.state is NodeState.MEMBER))


def _build(meta: Meta, keyspace: Keyspace) -> bytes:
    assert keyspace.plan is not None  # only a planned one is ever creating
    key = keyspace_key(keyspace.name)
    first = keyspace.plan.first_group
    missing = [place for place in range(keyspace.plan.shards) if first + place not in meta.shards]
    shards = [shard_of(keyspace, place) for place in missing[: MAX_TXN_OPERATIONS - 1]]
    puts = {shard_key(shard.group): shard.encode() for shard in shards}
    compares = {key: meta.mod(key), **dict.fromkeys(puts, 0)}  # what is there may have more replicas by now
    return transaction(compares, puts or {key: keyspace._replace(state=KeyspaceState.READY).encode()})


def _tear_down(meta: Meta, keyspace: Keyspace) -> bytes:
    key = keyspace_key(keyspace.name)
    compares, changes = {key: meta.mod(key)}, dict[bytes, bytes | None]()
    for _, shard in sorted(meta.shards.items()):
        if shard.keyspace != keyspace.name:
            continue
        if changes and len(changes) + 1 + len(shard.replicas) > MAX_TXN_OPERATIONS:
            break
        # A replica that was added meanwhile would never be destroyed.
        compares[shard_key(shard.group)] = meta.mod(shard_key(shard.group))
        changes[shard_key(shard.group)] = None
        for replica, node in shard.replicas:
            removal = Removal(shard.group, replica, node)
            changes[removal.key] = removal.encode()
    return transaction(compares, changes or {key: None})


def shard_key(group: int) -> bytes:
    """The key of a shard's descriptor."""
    return SHARD_PREFIX + b"%016x" % group


def transaction(compares: Mapping[bytes, int], changes: Mapping[bytes, bytes | None]) -> bytes:
    """If the rows were changed last at these revisions (0: are not there), put or (None) delete."""
    request = kv_pb2.TxnRequest()
    for key, revision in sorted(compares.items()):
        request.compare.add(target=kv_pb2.Compare.MOD, key=key, number=revision)
    for key, value in sorted(changes.items()):
        if value is None:
            request.success.add(delete=kv_pb2.TxnDelete(key=key))
        else:
            request.success.add(put=kv_pb2.TxnPut(key=key, value=value))
    return request.SerializeToString()

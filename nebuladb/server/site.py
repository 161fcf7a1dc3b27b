"""A node's databases written offline, for a cluster that begins with the states that are there (restore, recover).

All ids follow from what is given, so that the directories of several nodes fit each other. Each group begins behind the
log index that its state is of, with an empty log and all nodes of the cluster voting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from nebuladb.errors import ConfigurationError, Corruption
from nebuladb.ids import META_GROUP, BatchId, Generation, GroupId, NodeId
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.leases import LAST_CLOCK
from nebuladb.kv.limits import MAX_TXN_OPERATIONS
from nebuladb.kv.rows import Keys, decode_lease, encode_lease
from nebuladb.kv.state import State
from nebuladb.kv.store import Store
from nebuladb.node.declared import DeclaredAlarm
from nebuladb.node.frame import CLUSTER_VERSION
from nebuladb.node.identity import Founding
from nebuladb.node.keyspaces import keyspace_key, shard_key
from nebuladb.node.meta import FIRST_GROUP, GROUP_KEY, REPLICA_KEY, VERSION_KEY, founding_shards, meta_shard
from nebuladb.node.record import NodeRecord
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft import Configuration, HardState
from nebuladb.shard import Descriptor, Keyspace
from nebuladb.shard.layout import INITIAL
from nebuladb.storage.engine import Batch, Engine
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch

FIRST_GENERATION: Final = Generation(1)
LAST_LEASE: Final = b"\xff" * 9
"""Behind the id of each lease, as the end of its row's key."""
LEASES_BYTES: Final = 1 << 20
"""Of leases' rows that are written at once."""
MAX_REVISION: Final = 1 << 62
"""To begin with: as many again are left before a revision has no room in 64 bits, and the shard no next one."""


class Site:
    """The databases in the making of one node of the cluster `founding`.

    `generations`: of groups whose data lies under another one than the first.
    """

    def __init__(self, data: Engine, founding: Founding, generations: Mapping[int, int] | None = None) -> None:
        self._data = data
        self._founding = founding
        self._generations = generations or {}

    def keys(self, group: int) -> Keys:
        """The row keys of a group's data."""
        return Keys(GroupId(group), self.generation(group))

    def generation(self, group: int) -> Generation:
        """The generation under which a group's data lies."""
        return Generation(self._generations.get(group, FIRST_GENERATION))

    def state(self, group: int) -> State:
        """Raises `Corruption` if there is none."""
        row = self._data.get(self.keys(group).state)
        if row is None:
            raise Corruption(f"shard {group} has no state")
        return State.decode(row)

    def placed(self, shards: Sequence[Descriptor]) -> list[Descriptor]:
        """`shards` with replicas on the founding nodes; `default` and `etcd` as a founding has them.

        A replica that comes later begins at `INITIAL`, where it has nothing, and gets a snapshot.
        """
        founded = {shard.group: shard for shard in founding_shards(self._founding)}
        nodes = sorted(founder.node for founder in self._founding.nodes)
        replica = self._founding.next_replica
        made = []
        for old in sorted(shards, key=lambda shard: shard.group):
            if old.group in founded:
                replicas = founded[old.group].replicas
            else:
                replicas = tuple((replica + place, node) for place, node in enumerate(nodes))
                replica += len(nodes)
            made.append(old._replace(replicas=replicas, initial=INITIAL, founders=(), roles=()))
        return made

    def enter(self, shard: Descriptor, *, bump: int = 0, mark_compacted: bool = False) -> None:
        """Give a shard's state its new members, and a revision that is `bump` higher; and its leases their whole TTL.
        Raises `ConfigurationError`."""
        state = self.state(shard.group)
        state.configuration = _configuration(shard).encode()
        state.forget_half()
        if bump and bump > MAX_REVISION - state.revision:
            raise ConfigurationError(
                f"bump-revision: shard {shard.group} is at revision {state.revision}; it can be raised by at most "
                f"{max(MAX_REVISION - state.revision, 0)}"
            )
        state.revision += bump
        if mark_compacted:
            state.floor = state.revision
        keys, batch = self.keys(shard.group), Batch()
        # A renewal may have been acknowledged after the backup, and whoever heard of it counts on a whole TTL. With
        # only what was left at the backup, the lock would go to somebody else meanwhile (S27).
        for row, data in self._data.scan(keys.lease, keys.lease + LAST_LEASE):
            lease = decode_lease(data)
            batch.put(row, encode_lease(lease._replace(expires=min(state.clock + lease.ttl, LAST_CLOCK))))
            if batch.size >= LEASES_BYTES:
                self._data.write(batch)
                batch = Batch()
        batch.put(keys.state, state.encode())
        self._data.write(batch)

    def write_meta(
        self,
        keyspaces: Sequence[Keyspace],
        shards: Sequence[Descriptor],
        issued: int,
        *,
        skip: int = 0,
        alarms: Sequence[DeclaredAlarm] = (),
    ) -> None:
        """The meta group's state: what a founding puts there, and these keyspaces, shards and alarms. `issued`: the
        next id of a group where they come from, 0 if it isn't known; as many ids from there on as `skip` are never
        issued."""
        founding, group = self._founding, GroupId(META_GROUP)
        Store.destroy(self._data, group, self.generation(group))
        own = Configuration(tuple(sorted(founding.replicas(META_GROUP))))
        Store.initialise(self._data, group, self.generation(group), index=1, term=1, configuration=own.encode())
        rows = {
            VERSION_KEY: b"%d" % CLUSTER_VERSION,
            GROUP_KEY: b"%d" % (max([FIRST_GROUP, issued, *(shard.group + 1 for shard in shards)]) + skip),
            REPLICA_KEY: b"%d" % (1 + max(replica for shard in shards for replica, _ in shard.replicas)),
        }
        for founder in founding.nodes:
            record = NodeRecord(founder.node, founder.name, founder.peer_address)
            rows[record.key] = record.encode()
        nodes = tuple(sorted(founder.node for founder in founding.nodes))
        for keyspace in keyspaces:
            if keyspace.plan is not None:
                first = min(shard.replicas[0][0] for shard in shards if shard.keyspace == keyspace.name)
                keyspace = keyspace._replace(plan=keyspace.plan._replace(nodes=nodes, first_replica=first))
            rows[keyspace_key(keyspace.name)] = keyspace.encode()
        for shard in shards:
            rows[shard_key(shard.group)] = shard.encode()
        for alarm in alarms:
            rows[alarm.key] = alarm.encode()
        store = Store(self._data, group, self.generation(group), NodeId(0))
        items = sorted(rows.items())
        for index, begin in enumerate(range(0, len(items), MAX_TXN_OPERATIONS), 2):
            request = kv_pb2.TxnRequest()
            for key, value in items[begin : begin + MAX_TXN_OPERATIONS]:
                request.success.add(put=kv_pb2.TxnPut(key=key, value=value))
            apply_all(store, [Work(index, 1, 0, [Command(Kind.TXN, request.SerializeToString())])])
        store.close()

    def write_log(self, log: LogStore, shards: Sequence[Descriptor], node: int) -> None:
        """An empty log behind each state, meta's too, and the registry that names them."""
        batch = LogBatch(BatchId(1))
        for shard in (meta_shard(self._founding), *shards):
            state, group = self.state(shard.group), GroupId(shard.group)
            replica = next(replica for replica, at in shard.replicas if at == node)
            configuration, generation = _configuration(shard), self.generation(group)
            row = RegistryRow(
                GroupState.NORMAL, generation, replica, INITIAL, state.index, shard.replicas, configuration
            )
            batch.create(group, state.index, state.term)
            batch.write(GroupWrite(group, HardState(state.term, 0, state.index), []))
            batch.register(group, row.encode())
        log.write(batch, BatchId(0))


def apply_all(store: Store, works: Sequence[Work]) -> None:
    """Apply `works` with an engine that may wait for the disk."""
    while works and store.index < works[-1].index:
        applied = store.apply(works)
        if applied.wanted:
            store.borrow(applied.wanted)
            store.supply(applied.wanted, store.fetch(applied.wanted))


def _configuration(shard: Descriptor) -> Configuration:
    return Configuration(tuple(replica for replica, _ in shard.replicas))


def restored_id(cluster: int, name: str) -> int:
    """The node's of this name in a cluster that is restored from a backup."""
    return derived_id(f"{cluster:x}", name)


def derived_id(*texts: str) -> int:
    """An id that follows from `texts` alone: 63 bits, not 0."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "big") >> 1 | 1

"""What the admin port and the metrics read from a node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nebuladb import __version__
from nebuladb.api.cluster import group_statuses
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.kv.limits import MAX_SESSIONS
from nebuladb.node import proposals, reads
from nebuladb.node.alarms import AlarmKind
from nebuladb.node.disk import Space
from nebuladb.node.housekeeping import announced
from nebuladb.node.pump import Pump
from nebuladb.raft import StateRole
from nebuladb.server.config import Config
from nebuladb.server.peers import Peers
from nebuladb.server.samples import GroupSample, QueueSample
from nebuladb.storage.rocks import RocksMemory

CONFIRM_SECONDS: Final = 2.0
"""For the readiness of one of the groups that are asked; `admin.READY_SECONDS` bounds the whole check."""
MAX_ASKED: Final = 256
"""Groups that are asked at once: each wakes its leader's."""


class NodeView:
    """`AdminView` and `NodeSamples` of one node, also while its cluster is being founded."""

    def __init__(self, config: Config, peers: Peers) -> None:
        self._config = config
        self._peers = peers
        self.serving = False
        """The client port is open and the node isn't stopping."""
        self._announced = False
        self._current: set[tuple[int, int]] = set()
        """(group, replica) here whose state was once as new as its leader's, in this process."""
        self.rocks: RocksMemory | None = None
        """Set when the databases open."""

    def livez(self) -> tuple[bool, str]:
        """The loop answers, and nothing has broken."""
        pump = self._peers.pump
        if pump is not None and pump.broken is not None:
            return False, f"stopping: {pump.broken}"
        return True, ""

    async def readyz(self) -> tuple[bool, str]:
        """A ReadIndex round on `default` and `etcd` passes through their leaders and majorities, as a put would. While
        reads of the data store fail here, others are ready, where there are any.

        And all shards here have caught up. Who waits for this stops the next node then; were this one to wait for a
        snapshot of some shard still, the two that are left of three would commit nothing there.

        And the cluster has this node's addresses. Before that the others find it at its old ones only. And were it
        restored from a backup once more, they wouldn't know that it has been in this life, and forgot its votes (S14).
        """
        pump = self._peers.pump
        if pump is None:
            if self._peers.identity.cluster:
                return False, "the databases are not open yet"
            return False, "waiting to join" if self._config.join else "waiting for the other founding nodes"
        if not self.serving:
            return False, "the client port is not open"
        if not pump.node.meta.version:
            return False, "the keyspaces are not known yet"
        others = pump.node.host.peers.values()
        if pump.node.alarms_now.stands(AlarmKind.UNREADABLE) and any(peer.well for peer in others):
            return False, "reads of this node's data store fail, and another node is well"
        if pump.node.host.disk.stuck:
            return False, "the data store takes no writes; the alarm says why"
        if why := _awaited(pump):  # first: a read of such a shard only waits in vain, and can't tell for what
            return False, why
        for group in (DEFAULT_GROUP, ETCD_GROUP):
            try:
                await pump.confirm(group, CONFIRM_SECONDS)
                pump.store(group)
            except NebulaError as error:
                return False, f"shard {group}: {error.message}"
        if why := await self._behind(pump):
            return False, why
        return await self._known(pump)

    async def _behind(self, pump: Pump) -> str:
        """Why a shard here isn't as new as its leader's, and never was in this process; empty: all are or were, but
        for those that nobody leads: no waiting for this node helps these. A full disk doesn't take what is new."""
        if pump.node.host.disk.space is Space.CRITICAL:
            return ""
        here = {(group, replica.id) for group, replica in pump.node.host.replicas.items()}
        self._current &= here
        slots = asyncio.Semaphore(MAX_ASKED)
        asked = [self._ask(pump, group, replica, slots) for group, replica in sorted(here - self._current)]
        return next(filter(None, await asyncio.gather(*asked)), "")

    async def _ask(self, pump: Pump, group: int, replica: int, slots: asyncio.Semaphore) -> str:
        """Why the replica hasn't caught up; empty if it has, or nobody leads."""
        try:
            async with slots:
                await pump.confirm(group, CONFIRM_SECONDS)
            pump.store(group)
        except NebulaError as error:
            return f"shard {group} has not caught up: {error.message}" if _waits(pump, group) else ""
        self._current.add((group, replica))
        return ""

    async def _known(self, pump: Pump) -> tuple[bool, str]:
        """Whether a majority has this node's addresses, and knows that they are committed, so that it finds the node
        there also after a restart of its own. Once it is so it stays so: a process has one pair of them."""
        if self._announced or pump.node.host.disk.space is Space.CRITICAL:
            return True, ""  # a node whose disk is full doesn't take the word that it is known there
        peer, client = self._config.advertise_peer_addr, self._config.advertise_client_addr
        if not announced(pump.node.meta, self._peers.identity.node, peer, client):
            return False, f"waiting for the meta group to take this node's addresses: peer {peer}, client {client}"
        try:
            await pump.confirm(META_GROUP, CONFIRM_SECONDS)
        except NebulaError as error:
            return False, f"meta group: {error.message}"
        self._announced = True
        return True, ""

    def status(self) -> dict[str, Any]:
        """As the contract's `/status`."""
        pump, config, identity = self._peers.pump, self._config, self._peers.identity
        names = {}
        groups: list[dict[str, Any]] = []
        if pump is not None:
            names = {record.node: record.name for record in pump.node.meta.nodes.values()}
            groups = group_statuses(pump.node)
        for group in groups:
            group["replica"] = group.pop("replica_id")
            leader = group.pop("leader_node")
            group["leader"] = names.get(leader, f"{leader:016x}" if leader else "")
        return {
            "name": config.name,
            "node_id": f"{identity.node:016x}",
            "cluster_id": f"{identity.cluster:016x}",
            "pid": os.getpid(),
            "version": __version__,
            "addresses": {
                "client": config.client_addr,
                "peer": config.peer_addr,
                "admin": config.admin_addr,
                "advertise_client": config.advertise_client_addr,
                "advertise_peer": config.advertise_peer_addr,
            },
            "groups": groups,
            "alarms": pump.node.alarms() if pump is not None else [],
        }

    def groups(self) -> Iterable[GroupSample]:
        """Every replica here, in group order."""
        pump = self._peers.pump
        if pump is None:
            return
        shards = pump.node.meta.shards
        for group, replica in sorted(pump.node.host.replicas.items()):
            raft = replica.raft
            descriptor = shards.get(group)
            yield GroupSample(
                group=group,
                keyspace=descriptor.keyspace if descriptor else "",
                leading=raft.role is StateRole.LEADER,
                has_leader=bool(raft.leader),
                term=raft.term,
                committed=raft.commit,
                applied=replica.applied,
                last_index=raft.last_index,
                log_start=replica.log_start,
                revision=pump.node.groups[group].store.revision,
                leader_changes=replica.leader_changes,
                proposals=replica.proposed_entries,
                proposals_refused=replica.proposals.refused,
            )

    def snapshots(self) -> Mapping[str, int]:
        """How many snapshots were sent, received, failed and refused; their bytes and milliseconds."""
        pump = self._peers.pump
        return pump.node.snapshots.counts if pump is not None else {}

    def alarms(self) -> Mapping[str, int]:
        """How many alarms of each kind are raised here."""
        pump = self._peers.pump
        return pump.node.alarms_now.counts() if pump is not None else {}

    def queues(self) -> Iterable[QueueSample]:
        """Every bounded queue here."""
        pump = self._peers.pump
        if pump is None:
            return
        node, host = pump.node, pump.node.host
        if (rocks := self.rocks) is not None:
            yield QueueSample("block_cache_bytes", rocks.block_cache_used, rocks.block_cache_limit)
            yield QueueSample("memtables_bytes", rocks.memtables_used, rocks.memtables_limit)
        yield QueueSample("records_bytes", node.records.used, node.records.limit)
        yield QueueSample("recent_entries_bytes", node.log.recent.size, node.log.recent.limit)
        yield QueueSample("log_unsynced_bytes", host.unsynced_bytes, host.batches.limit)
        yield QueueSample("writes_bytes", host.writes.used, host.writes.limit)
        yield QueueSample("writes", host.pending.used, host.pending.limit)
        yield QueueSample("outboxes_bytes", node.outboxes.used, node.outboxes.limit)
        stores = [data.store for data in node.groups.values()]
        yield QueueSample("sessions", sum(store.session_count for store in stores), MAX_SESSIONS * len(stores))
        for group, replica in sorted(host.replicas.items()):
            writes = replica.proposals
            yield QueueSample(f"writes_{group}", len(writes), proposals.MAX_PENDING)
            yield QueueSample(f"writes_bytes_{group}", writes.size, writes.most)
            yield QueueSample(f"reads_{group}", len(replica.reads), reads.MAX_READS)


def _awaited(pump: Pump) -> str:
    """Which shard here waits for a snapshot, and may get it; empty: none. A full disk doesn't take one."""
    if pump.node.host.disk.space is Space.CRITICAL:
        return ""
    snapshots = pump.node.snapshots
    awaited = (group for group in (*snapshots.lost, *snapshots.incoming) if _waits(pump, group))
    return next((f"shard {group} waits for a snapshot" for group in awaited), "")


def _waits(pump: Pump, group: int) -> bool:
    """Whether a replica that isn't up to date may become so: a leader is known, or it is about to be another one."""
    replica = pump.node.host.replicas.get(group)
    return replica is None or replica.raft.leader != 0

"""``nebula.v1.Cluster``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from nebuladb import __version__
from nebuladb.api.backend import Backend, parse
from nebuladb.api.backup import Views, backup
from nebuladb.api.drive import META
from nebuladb.api.members import Members
from nebuladb.api.status import descriptor_message
from nebuladb.errors import DeadlineExceeded, HashNotFound, WrongShard
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import HashResult
from nebuladb.kv.command import Command, Kind
from nebuladb.node.node import Node
from nebuladb.pb.nebula.v1 import cluster_pb2 as pb
from nebuladb.shard import Descriptor

HASH_POLL_SECONDS: Final = 0.01
"""Until it is looked for a hash again: the first time, and twice as long after each."""
HASH_POLL_MOST: Final = 0.5
"""10,000 calls may wait, for one that is never taken."""


class ClusterService:
    """Each method takes a request's bytes and gives a response's."""

    name = "nebula.v1.Cluster"

    def __init__(self, backend: Backend, client_address: str, peer_address: str) -> None:
        self._backend = backend
        self._addresses = (client_address, peer_address)
        self._members = Members(backend)

    async def Status(self, raw: bytes, context: Any) -> bytes:
        parse(pb.StatusRequest, raw)
        client, peer = self._addresses
        async with self._backend.glances:
            response = pb.StatusResponse(
                header=self._backend.header(),
                name=self._backend.node.identity.name,
                version=__version__,
                client_address=client,
                peer_address=peer,
                groups=[pb.GroupStatus(**fields) for fields in group_statuses(self._backend.node)],
                alarms=self._backend.node.alarms(),
            )
            return response.SerializeToString()

    async def Members(self, raw: bytes, context: Any) -> bytes:
        return await self._members.list(raw, context)

    async def MemberAdd(self, raw: bytes, context: Any) -> bytes:
        return await self._members.add(raw, context)

    async def MemberPromote(self, raw: bytes, context: Any) -> bytes:
        return await self._members.promote(raw, context)

    async def MemberRemove(self, raw: bytes, context: Any) -> bytes:
        return await self._members.remove(raw, context)

    async def Shards(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.ShardsRequest, raw)
        async with self._backend.glances:
            routing = self._backend.routing
            if request.keyspace:
                shards = routing.shards(request.keyspace)
            else:
                shards = [shard for _, shard in sorted(routing.descriptors.items())]
            response = pb.ShardsResponse(header=self._backend.header())
            for shard in shards:
                response.shards.append(descriptor_message(shard))
                response.leaders.append(self._backend.leader(shard.group))
            return response.SerializeToString()

    async def StateHash(self, raw: bytes, context: Any) -> bytes:
        """Ordering a hash and waiting for it are two requests: a wait may be repeated, here or at any node, however
        long the hash takes, and always joins the one that is being taken."""
        request = parse(pb.StateHashRequest, raw)
        shard = self._shard(request.group)
        timeout = self._backend.answer_within(context)
        index, found = request.index, b""
        if index:
            found = await self._hash(shard, index, timeout)
        else:
            answer = await self._backend.propose(shard, Command(Kind.HASH, b""), timeout)
            assert isinstance(answer.result, HashResult)
            index = answer.result.index
        store = self._backend.pump.store(shard.group)
        header = self._backend.header(shard.group, store.revision)
        return pb.StateHashResponse(header=header, index=index, hash=found).SerializeToString()

    async def _hash(self, shard: Descriptor, index: int, timeout: float) -> bytes:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + timeout, HASH_POLL_SECONDS
        while (left := deadline - loop.time()) > 0:
            store = self._backend.pump.store(shard.group)
            found = store.hash_at(index)
            if found is not None:
                return found
            if store.index >= index and not store.hashing(index):
                raise HashNotFound(f"this node has no hash of shard {shard.group} at index {index}; order a new one")
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, HASH_POLL_MOST)
        raise DeadlineExceeded(f"this node's hash of shard {shard.group} at index {index} took too long")

    async def Snapshot(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        request = parse(pb.SnapshotRequest, raw)
        views = Views(self._backend, self._backend.answer_within(context))
        async with aclosing(backup(self._backend, request, views)) as pieces:
            async for response in pieces:
                yield response.SerializeToString()

    async def TransferLeadership(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.TransferLeadershipRequest, raw)
        shard = self._shard(request.group)
        self._backend.node.host.transfer_leadership(shard.group, request.node_id)
        self._backend.pump.wake()
        return pb.TransferLeadershipResponse(header=self._backend.header(shard.group)).SerializeToString()

    def _shard(self, group: int) -> Descriptor:
        """A shard by id; the meta group counts as one."""
        found = self._backend.descriptor(group)
        if found is not None:
            return found
        if group == META_GROUP:
            return META
        raise WrongShard(f"there is no shard {group}; see `nebula-cli shard list`")


def group_statuses(node: Node) -> list[dict[str, Any]]:
    """What this node's replicas say of themselves, in group order."""
    statuses = []
    for group, replica in sorted(node.host.replicas.items()):
        store = node.groups[group].store
        descriptor = node.meta.shards.get(group)
        statuses.append(
            {
                "group": group,
                "keyspace": descriptor.keyspace if descriptor else "",
                "replica_id": replica.id,
                "role": str(replica.raft.role),
                "leader_node": replica.nodes.get(replica.raft.leader, 0),
                "term": replica.raft.term,
                "committed": replica.raft.commit,
                "applied": store.index,
                "revision": store.revision,
                "compact_revision": store.floor,
                "log_start": replica.log_start,
            }
        )
    return statuses

"""``etcdserverpb.Maintenance`` (etcd 53 to 56)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from nebuladb.api.backup import Views, backup
from nebuladb.api.drive import Due, until
from nebuladb.api.etcd.alarms import alarms, change
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.requests import received
from nebuladb.api.etcd.version import VERSION
from nebuladb.errors import DeadlineExceeded, TooManyRequests
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.history_hash import HistoryHash
from nebuladb.node.backup import SECTOR_BYTES
from nebuladb.pb.etcd import maintenance_pb2 as pb
from nebuladb.pb.nebula.v1 import cluster_pb2
from nebuladb.shard import Descriptor

BLOB_BYTES: Final = 32 << 10
HELD_BYTES: Final = 4 << 20
"""The end of a snapshot, for which `remaining_bytes` is exact."""
MAX_HASHES: Final = 2
"""In progress; each holds an engine snapshot."""
HASH_ROWS: Final = 512
"""Of one slice in a thread."""
KEY_BYTES: Final = 64
"""What a record takes beyond its key and value; and so, once, the shard's state."""
_RELEASE: Final = re.compile(r"\d+\.\d+(\.\d+([-+][0-9A-Za-z.+-]+)?)?")


class MaintenanceService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._backend = face.backend
        self._hashes = 0

    # --- status and alarms

    async def Status(self, raw: bytes, context: Any) -> bytes:
        received(pb.StatusRequest, raw)
        shard = self._face.shard(context)
        store = self._backend.pump.store(shard.group)
        replica = self._backend.node.host.replicas[shard.group]
        leader = self._backend.leader(shard.group)
        size = store.size + KEY_BYTES * (store.key_count + 1)
        errors = [] if leader else ["etcdserver: no leader"]
        errors += map(_text, alarms(self._backend))
        response = pb.StatusResponse(
            header=self._face.header(shard.group, store.revision),
            version=VERSION,
            dbSize=size,
            dbSizeInUse=size,
            leader=leader,
            raftIndex=replica.raft.commit,
            raftTerm=replica.raft.term,
            raftAppliedIndex=store.index,
            errors=errors,
            isLearner=self._backend.id in self._backend.meta.learners,
        )
        return response.SerializeToString()

    async def Alarm(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.AlarmRequest, raw)
        shard, timeout = self._face.shard(context), self._face.timeout(context)
        # etcd's members all end at a number that they don't know (3.5.16).
        if request.action not in pb.AlarmRequest.AlarmAction.values():
            raise EtcdError("INVALID_ARGUMENT", f"etcdserver: there is no alarm action {request.action}")
        if request.action == pb.AlarmRequest.ACTIVATE and request.alarm not in pb.AlarmType.values():
            raise EtcdError("INVALID_ARGUMENT", f"etcdserver: there is no alarm {request.alarm}")
        if request.action == pb.AlarmRequest.GET:
            await self._backend.refresh(timeout)
            found = [one for one in alarms(self._backend) if request.alarm in (pb.NONE, one.alarm)]
        else:
            found = await change(self._backend, request, timeout)
        return pb.AlarmResponse(header=self._now(shard), alarms=found).SerializeToString()

    # --- hashes

    async def Hash(self, raw: bytes, context: Any) -> bytes:
        received(pb.HashRequest, raw)
        shard = self._face.shard(context)
        found, work = await self._hash(shard, 0, context)
        header = self._face.header(shard.group, work.newest)
        return pb.HashResponse(header=header, hash=found).SerializeToString()

    async def HashKV(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.HashKVRequest, raw)
        shard = self._face.shard(context)
        found, work = await self._hash(shard, request.revision, context)
        response = pb.HashKVResponse(
            header=self._face.header(shard.group, work.newest),
            hash=found,
            compact_revision=work.floor or -1,
            hash_revision=work.revision,
        )
        return response.SerializeToString()

    async def _hash(self, shard: Descriptor, revision: int, context: Any) -> tuple[int, HistoryHash]:
        """Of this node's own state, in a thread. It takes as long as it takes, some microseconds a version."""
        if self._hashes >= MAX_HASHES:
            raise TooManyRequests(f"this node takes {MAX_HASHES} hashes already; try again when they are done")
        self._backend.pump.store(shard.group)
        generation = Generation(self._backend.node.host.replicas[shard.group].generation)
        work = HistoryHash(self._backend.node.data, GroupId(shard.group), generation, revision)
        self._hashes += 1
        try:
            while (found := await asyncio.to_thread(work.step, HASH_ROWS)) is None:
                # The transport tells the caller; a handler by another one isn't ended by it.
                if context.time_remaining() == 0:
                    raise DeadlineExceeded("the hash took too long; ask with a later deadline")
            return found, work
        finally:
            self._hashes -= 1
            work.close()

    # --- the rest

    async def Defragment(self, raw: bytes, context: Any) -> bytes:
        """The engine gives room back by itself, all the time: nothing is to be done, and nobody has to wait for it."""
        received(pb.DefragmentRequest, raw)
        self._face.shard(context)
        return pb.DefragmentResponse().SerializeToString()

    async def Snapshot(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        """A backup of the whole cluster in NebulaDB's format, padded as etcdctl wants it, and its SHA-256."""
        received(pb.SnapshotRequest, raw, stream=True)
        self._face.shard(context)
        estimate = sum(data.store.size for data in self._backend.node.groups.values())
        digest = hashlib.sha256()
        sent = 0
        waiting = bytearray()

        def blob(remaining: int) -> bytes:
            nonlocal sent
            data = bytes(waiting[:BLOB_BYTES])
            del waiting[:BLOB_BYTES]
            sent += len(data)
            digest.update(data)
            return pb.SnapshotResponse(
                remaining_bytes=max(remaining - sent, len(waiting)), blob=data
            ).SerializeToString()

        views = Views(self._backend, self._face.timeout(context), leaderless=True)
        async with aclosing(backup(self._backend, cluster_pb2.SnapshotRequest(), views)) as pieces:
            async for piece in pieces:
                waiting += piece.data
                # How much it will be isn't known before it was read: what is behind the part held here is a guess.
                while len(waiting) > HELD_BYTES:
                    yield blob(estimate)
        waiting += bytes(-(sent + len(waiting)) % SECTOR_BYTES)
        while waiting:
            yield blob(0)
        yield pb.SnapshotResponse(blob=digest.digest()).SerializeToString()

    async def MoveLeader(self, raw: bytes, context: Any) -> bytes:
        target = received(pb.MoveLeaderRequest, raw).targetID
        shard = self._face.shard(context)
        backend = self._backend
        if backend.leader(shard.group) != backend.id:
            raise EtcdError("FAILED_PRECONDITION", "etcdserver: not leader")
        replica = backend.node.host.replicas[shard.group]
        voters = {replica.nodes.get(voter) for voter in replica.raft.configuration.voters}
        if target not in voters:
            raise EtcdError("FAILED_PRECONDITION", "etcdserver: bad leader transferee")
        if target != backend.id:
            late = EtcdError("UNAVAILABLE", "etcdserver: request timed out, leader transfer took too long")
            backend.node.host.transfer_leadership(shard.group, target)
            backend.pump.wake()
            await until(lambda: backend.leader(shard.group) == target, Due(self._face.timeout(context)), late)
        return pb.MoveLeaderResponse().SerializeToString()

    async def Downgrade(self, raw: bytes, context: Any) -> bytes:
        """There is no older release to go back to."""
        request = received(pb.DowngradeRequest, raw)
        self._face.shard(context)
        if request.action == pb.DowngradeRequest.CANCEL:
            raise EtcdError("FAILED_PRECONDITION", "etcdserver: no inflight downgrade job")
        if request.action not in pb.DowngradeRequest.DowngradeAction.values():
            raise EtcdError("UNKNOWN", "etcdserver: unknown method")
        if not _RELEASE.fullmatch(request.version):
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: wrong downgrade target version format")
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: invalid downgrade target version")

    def _now(self, shard: Descriptor) -> Any:
        return self._face.header(shard.group, self._backend.pump.store(shard.group).revision)


def _text(alarm: pb.AlarmMember) -> str:
    """As Go prints the message."""
    member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
    return f"{member}alarm:{pb.AlarmType.Name(alarm.alarm)} "

"""``v3electionpb.Election``: a contest whose entries have values; the owner's is what the leader proclaims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from nebuladb.api.backend import key_value
from nebuladb.api.etcd.contest import Contest, Contests, create_is, refused, resignation
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.line import earliest, entries
from nebuladb.api.etcd.requests import received
from nebuladb.errors import NebulaError
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.store import Store
from nebuladb.kv.watcher import Event
from nebuladb.pb.etcd import election_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.shard import Descriptor

NO_LEADER: Final = "election: no leader"
NOT_LEADER: Final = "election: not leader"
NO_FIELD: Final = '"leader" field must be provided'


class ElectionService:
    """Each unary method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._contests = Contests(face)

    async def Campaign(self, raw: bytes, context: Any) -> bytes:
        """Waits until the lease leads. Who leads or campaigns already proclaims its new value."""
        request = received(pb.CampaignRequest, raw)
        contests, shard = self._contests, self._face.shard(context)
        lease = await contests.grant(shard, request.lease, context)
        contest = Contest(contests, shard, request.name, lease, granted=not request.lease)
        entry = await contest.enter(request.value, context)
        if entry.found is not None and entry.found.value != request.value:
            await self._proclaim(shard, contest.key, entry.create, request.value, lease, context)
        # etcd doesn't look whether the entry is still there, and calls who has lost it the leader.
        await contest.owns(refused(NOT_LEADER), context)
        leader = pb.LeaderKey(name=request.name, key=contest.key, rev=entry.create, lease=lease)
        header = self._face.header(shard.group, entry.revision)
        return pb.CampaignResponse(header=header, leader=leader).SerializeToString()

    async def Proclaim(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.ProclaimRequest, raw)
        leader = _leader(request)
        shard = self._face.shard(context)
        lease = await self._contests.grant(shard, leader.lease, context)
        revision = await self._proclaim(shard, leader.key, leader.rev, request.value, lease, context)
        return pb.ProclaimResponse(header=self._face.header(shard.group, revision)).SerializeToString()

    async def Resign(self, raw: bytes, context: Any) -> bytes:
        """Who doesn't lead any more has nothing to resign from, and isn't refused."""
        leader = _leader(received(pb.ResignRequest, raw))
        shard = self._face.shard(context)
        answer = await self._contests.propose(shard, resignation(leader.key, leader.rev), context)
        return pb.ResignResponse(header=self._face.header(shard.group, answer.revision)).SerializeToString()

    async def Leader(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.LeaderRequest, raw)
        shard = self._face.shard(context)
        revision, kv = await self._now(shard, request.name, context)
        if kv is None:
            raise refused(NO_LEADER)
        return self._response(shard, revision, kv)

    async def Observe(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        """What the leaders proclaim, one after the other; not every value, but always the last one."""
        request = received(pb.LeaderRequest, raw, stream=True)
        shard = self._face.shard(context)
        follow = _Follow(self._face, shard)
        with self._face.leadership.required(context, shard.group, follow.fail):
            while True:
                revision, kv = await self._now(shard, request.name, context)
                if kv is None:
                    async for event in follow.events(*entries(request.name), revision + 1):
                        if not event.deleted:
                            kv, revision = event.kv, event.kv.mod_revision
                            break
                    if kv is None:
                        continue
                yield self._response(shard, revision, kv)
                async for event in follow.events(kv.key, b"", revision + 1):
                    if event.deleted:
                        break
                    yield self._response(shard, event.kv.mod_revision, event.kv)

    async def _proclaim(
        self, shard: Descriptor, key: bytes, create: int, value: bytes, lease: int, context: Any
    ) -> int:
        """Give the leader's key a value; the shard's revision then."""
        request = kv_pb2.TxnRequest(
            compare=[create_is(key, create)],
            success=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=key, value=value, lease=lease))],
        )
        answer, result = await self._contests.run(shard, request, context)
        if not result.succeeded:
            raise refused(NOT_LEADER)
        return answer.revision

    async def _now(self, shard: Descriptor, name: bytes, context: Any) -> tuple[int, KeyValue | None]:
        """The leader's key, as of now, and the revision at which it is that, or at which there was none."""
        backend = self._face.backend
        await backend.current(shard, self._face.timeout(context))
        while True:
            revision, leader = await earliest(backend, shard, name)
            if leader is None:
                return revision, None
            store, kv = await self._get(shard, backend.pump.store(shard.group), leader.key)
            if kv is not None and kv.create_revision == leader.create_revision:
                return store.revision, kv

    async def _get(self, shard: Descriptor, store: Store, key: bytes) -> tuple[Store, KeyValue | None]:
        """A key, of this store or, where that takes the disk, of what is there then."""
        return await self._face.backend.pump.looks.read(shard.group, store, lambda store: store.get(key))

    def _response(self, shard: Descriptor, revision: int, kv: KeyValue) -> bytes:
        message = pb.LeaderResponse(header=self._face.header(shard.group, revision))
        message.kv.ParseFromString(key_value(kv).SerializeToString())  # the same fields under the same numbers
        return message.SerializeToString()


class _Follow:
    """Changes of a key or a range, for `Observe`."""

    def __init__(self, face: Face, shard: Descriptor) -> None:
        self._backend = face.backend
        self._shard = shard
        self._news = asyncio.Event()
        self._failure: NebulaError | None = None

    def fail(self, error: NebulaError) -> None:
        """`events` raises `error`."""
        self._failure = error
        self._news.set()

    async def events(self, key: bytes, end: bytes, start: int) -> AsyncIterator[Event]:
        """From revision `start` on; ends where history is lost: the caller looks anew."""
        hub = self._backend.hub(self._shard)
        watcher = hub.watch(key, end, start, on_ready=self._news.set)
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                canceled = watcher.canceled
                for batch in watcher.take():
                    for event in batch.events:
                        yield event
                if canceled:
                    return
                if watcher.lagging:
                    self._backend.pump.work()
                await self._news.wait()
                self._news.clear()
        finally:
            hub.remove(watcher)


def _leader(request: pb.ProclaimRequest | pb.ResignRequest) -> pb.LeaderKey:
    if not request.HasField("leader"):
        raise refused(NO_FIELD)
    if not request.leader.key:
        raise refused("etcdserver: key is not provided")
    return request.leader

"""``v3lockpb.Lock``: a lock is a contest; who is told that it owns is told by a revision that only rises."""

from __future__ import annotations

from typing import Any, Final

from nebuladb.api.etcd.contest import Contest, Contests, refused
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.requests import received
from nebuladb.kv.command import Command, Kind
from nebuladb.pb.etcd import lock_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2

EXPIRED: Final = "mutex: session is expired"


class LockService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._contests = Contests(face)

    async def Lock(self, raw: bytes, context: Any) -> bytes:
        """Waits until the lock is the lease's. Who holds it already gets it again."""
        request = received(pb.LockRequest, raw)
        face, contests = self._face, self._contests
        shard = face.shard(context)
        lease = await contests.grant(shard, request.lease, context)
        contest = Contest(contests, shard, request.name, lease, granted=not request.lease)
        entry = await contest.enter(b"", context)
        revision = max(entry.revision, await contest.owns(refused(EXPIRED), context))
        return pb.LockResponse(header=face.header(shard.group, revision), key=contest.key).SerializeToString()

    async def Unlock(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.UnlockRequest, raw)
        if not request.key:
            raise refused("etcdserver: key is not provided")
        shard = self._face.shard(context)
        body = kv_pb2.DeleteRequest(key=request.key).SerializeToString()
        answer = await self._contests.propose(shard, Command(Kind.DELETE, body), context)
        return pb.UnlockResponse(header=self._face.header(shard.group, answer.revision)).SerializeToString()

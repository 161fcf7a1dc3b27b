"""``etcdserverpb.Lease``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final

from nebuladb.api.backup import Views
from nebuladb.api.etcd.face import MAX_SECONDS, Face
from nebuladb.api.etcd.requests import received
from nebuladb.env import probe
from nebuladb.errors import NebulaError, Outcome, Unavailable
from nebuladb.kv.answer import Answer, LeaseResult
from nebuladb.kv.change import LeaseInfo
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.sorting import in_order
from nebuladb.pb.etcd import lease_pb2 as pb
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.shard import Descriptor

MAX_KEEP_ALIVES: Final = 1_000
"""Of one stream on their way at once; a client with many leases waits for a round trip a thousand, not for each."""
RETRY_SECONDS: Final = 0.1


class LeaseService:
    """Each unary method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face

    async def LeaseGrant(self, raw: bytes, context: Any) -> bytes:
        # What is wrong with it is said by the state machine: an alarm that is raised comes first, as etcd has it.
        request = received(pb.LeaseGrantRequest, raw)
        body = lease_pb2.LeaseGrantRequest(ttl=request.TTL, id=request.ID)
        shard = self._face.shard(context)
        answer = await self._propose(shard, Kind.LEASE_GRANT, body.SerializeToString(), context)
        response = pb.LeaseGrantResponse(header=self._face.header(shard.group, answer.revision))
        if isinstance(answer.result, LeaseResult):
            response.ID, response.TTL = answer.result.lease, answer.result.ttl
        return response.SerializeToString()

    async def LeaseRevoke(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.LeaseRevokeRequest, raw)
        shard = self._face.shard(context)
        body = lease_pb2.LeaseRevokeRequest(id=request.ID)
        answer = await self._propose(shard, Kind.LEASE_REVOKE, body.SerializeToString(), context)
        return pb.LeaseRevokeResponse(header=self._face.header(shard.group, answer.revision)).SerializeToString()

    async def LeaseTimeToLive(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.LeaseTimeToLiveRequest, raw)
        backend, shard = self._face.backend, self._face.shard(context)
        timeout = self._face.timeout(context)

        def told(revision: int, lease: LeaseInfo | None) -> pb.LeaseTimeToLiveResponse:
            header = self._face.header(shard.group, revision)
            response = pb.LeaseTimeToLiveResponse(header=header, ID=request.ID, TTL=-1)
            if lease is not None:
                response.TTL, response.grantedTTL = lease.remaining, lease.ttl
            return response

        return await backend.lease(shard, request.ID, timeout, told, keys=request.keys)

    async def LeaseLeases(self, raw: bytes, context: Any) -> bytes:
        received(pb.LeaseLeasesRequest, raw)
        backend, shard = self._face.backend, self._face.shard(context)
        await Views(backend, self._face.timeout(context), leaderless=True).current(shard)
        revision, listed = await backend.leases(shard.group, _listed)
        return self._face.prefix(shard.group, revision) + listed

    async def LeaseKeepAlive(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers in the order of the requests, of which many are on their way at once: they share log entries."""
        face = self._face
        shard = await face.settled(context)
        alive = _KeepAlives(face, shard)
        with face.leadership.required(context, shard.group, alive.fail):
            listening = asyncio.create_task(alive.listen(requests), name="keep-alive requests")
            try:
                async for response in alive.responses():
                    yield response
            finally:
                listening.cancel()
                alive.close()

    def _propose(self, shard: Descriptor, kind: Kind, body: bytes, context: Any) -> Awaitable[Answer]:
        backend = self._face.backend
        return backend.propose(shard, Command(kind, body), self._face.timeout(context))


class _KeepAlives:
    """One stream of keep-alives."""

    def __init__(self, face: Face, shard: Descriptor) -> None:
        self._face = face
        self._shard = shard
        self._waiting: deque[tuple[int, asyncio.Task[Answer]]] = deque()
        """(lease, answer), in the order of the requests."""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._failure: BaseException | None = None

    async def listen(self, requests: AsyncIterator[bytes]) -> None:
        """Take requests until they end."""
        try:
            async for raw in requests:
                while len(self._waiting) >= MAX_KEEP_ALIVES:
                    self._room.clear()
                    await self._room.wait()
                lease = received(pb.LeaseKeepAliveRequest, raw, stream=True).ID
                body = lease_pb2.LeaseKeepAliveRequest(id=lease).SerializeToString()
                self._waiting.append((lease, asyncio.create_task(self._renew(body))))
                self._news.set()
            self._ended = True
            self._news.set()
        except Exception as error:
            self.fail(error)

    async def _renew(self, body: bytes) -> Answer:
        """A renewal, tried again over a change of leader: twice is as good as once. Each has the time of a call. Where
        this node can't serve, another one may: the client goes there, while there is time."""
        loop = asyncio.get_running_loop()
        due = loop.time() + MAX_SECONDS
        while True:
            try:
                command = Command(Kind.LEASE_KEEP_ALIVE, body)
                return await self._face.backend.propose(self._shard, command, due - loop.time())
            except NebulaError as error:
                again = (error.retryable and not isinstance(error, Unavailable)) or error.outcome is Outcome.UNKNOWN
                if not again or loop.time() + RETRY_SECONDS >= due:
                    raise
                probe("etcd: a keep-alive is tried again")
                await asyncio.sleep(RETRY_SECONDS)

    def fail(self, error: BaseException) -> None:
        """End the stream with `error`."""
        self._failure = self._failure or error
        self.close()
        self._news.set()

    def close(self) -> None:
        """Nobody waits for what is on its way."""
        for _, task in self._waiting:
            task.cancel()

    async def responses(self) -> AsyncIterator[bytes]:
        """One for each request; ends with them."""
        while True:
            while self._waiting:
                lease, task = self._waiting[0]
                await asyncio.wait((task,))
                self._check()
                self._waiting.popleft()
                self._room.set()
                yield self._response(lease, task.result())
            self._check()
            if self._ended:
                return
            await self._news.wait()
            self._news.clear()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _response(self, lease: int, answer: Answer) -> bytes:
        response = pb.LeaseKeepAliveResponse(header=self._face.header(self._shard.group, answer.revision), ID=lease)
        if isinstance(answer.result, LeaseResult):
            response.TTL = answer.result.ttl
        return response.SerializeToString()


def _listed(leases: dict[int, tuple[int, int, int]]) -> bytes:
    """The field `leases` of a response, in the order of what is left of them, as etcd lists them."""
    ordered = in_order([(expires, renewal, lease) for lease, (expires, renewal, _) in leases.items()], tuple)
    statuses = (pb.LeaseStatus(ID=lease) for _, _, lease in ordered)
    return pb.LeaseLeasesResponse(leases=statuses).SerializeToString()

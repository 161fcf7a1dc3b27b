"""``nebula.v1.Lease``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from nebuladb.api.backend import Backend, Divided, parse, session_fields
from nebuladb.errors import InvalidArgument, LeaseNotFound
from nebuladb.ids import lease_group
from nebuladb.kv import check
from nebuladb.kv.answer import LeaseResult
from nebuladb.kv.change import LeaseInfo
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.sorting import in_order
from nebuladb.node.meta import DEFAULT
from nebuladb.pb.nebula.v1 import lease_pb2 as pb
from nebuladb.shard import Descriptor


class LeaseService:
    """Each method takes a request's bytes and gives a response's."""

    name = "nebula.v1.Lease"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Grant(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.LeaseGrantRequest, raw)
        check.lease_grant(request)
        if request.id < 0 and self._divided(request.keyspace):
            raise Divided(f"lease id {request.id} is negative")  # it could not name its shard
        shard = self._backend.route(request.keyspace, request.key)
        if request.id and self._divided(request.keyspace) and lease_group(request.id) != shard.group:
            raise Divided(f"lease id {request.id} does not name the shard of its key, {shard.group}; give none")
        command = Command(Kind.LEASE_GRANT, raw, **session_fields(request.session))
        answer = await self._backend.propose(shard, command, self._backend.answer_within(context))
        response = pb.LeaseGrantResponse(header=self._backend.header(shard.group, answer.revision))
        if isinstance(answer.result, LeaseResult):
            response.id, response.ttl = answer.result.lease, answer.result.ttl
        return response.SerializeToString()

    async def Revoke(self, raw: bytes, context: Any) -> bytes:
        check.control(len(raw))
        request = parse(pb.LeaseRevokeRequest, raw)
        shard = self._shard(request.keyspace, request.id)
        command = Command(Kind.LEASE_REVOKE, raw, **session_fields(request.session))
        answer = await self._backend.propose(shard, command, self._backend.answer_within(context))
        return pb.LeaseRevokeResponse(header=self._backend.header(shard.group, answer.revision)).SerializeToString()

    async def KeepAlive(self, raw: bytes, context: Any) -> bytes:
        check.control(len(raw))
        request = parse(pb.LeaseKeepAliveRequest, raw)
        shard = self._shard(request.keyspace, request.id)
        command = Command(Kind.LEASE_KEEP_ALIVE, raw)
        answer = await self._backend.propose(shard, command, self._backend.answer_within(context))
        response = pb.LeaseKeepAliveResponse(header=self._backend.header(shard.group, answer.revision), id=request.id)
        if isinstance(answer.result, LeaseResult):
            response.ttl = answer.result.ttl
        return response.SerializeToString()

    async def TimeToLive(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.LeaseTimeToLiveRequest, raw)
        shard = self._shard(request.keyspace, request.id)
        timeout = self._backend.answer_within(context)

        def told(revision: int, lease: LeaseInfo | None) -> pb.LeaseTimeToLiveResponse:
            header = self._backend.header(shard.group, revision)
            response = pb.LeaseTimeToLiveResponse(header=header, id=request.id, ttl=-1)
            if lease is not None:
                response.ttl, response.granted_ttl = lease.remaining, lease.ttl
            return response

        return await self._backend.lease(shard, request.id, timeout, told, keys=request.keys)

    async def List(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.LeaseListRequest, raw)
        shards = self._backend.routing.shards(request.keyspace or DEFAULT)
        response = pb.LeaseListResponse()
        for shard in shards:
            await self._backend.current(shard, self._backend.answer_within(context))
            revision, _ = await self._backend.leases(shard.group, partial(_list, response))
            response.header.CopyFrom(
                self._backend.header(shard.group, revision) if len(shards) == 1 else self._backend.header()
            )
        return response.SerializeToString()

    def _shard(self, keyspace: str, lease: int) -> Descriptor:
        """Of a lease. A negative id, which etcd's clients may have chosen, names none."""
        if lease == 0:
            raise InvalidArgument("a lease id is not provided")
        if lease < 0 and self._divided(keyspace):
            raise LeaseNotFound
        return self._backend.route_lease(keyspace, lease)

    def _divided(self, keyspace: str) -> bool:
        """Whether there are several shards, so that a lease must say which is its."""
        return len(self._backend.routing.shards(keyspace or DEFAULT)) > 1


def _list(response: pb.LeaseListResponse, leases: Iterable[int]) -> None:
    """Add them by rising id, negative ones last."""
    response.ids.extend(in_order(list(leases), key=lambda lease: (lease < 0, lease)))

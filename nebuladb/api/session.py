"""``nebula.v1.Session``."""

from __future__ import annotations

from typing import Any

from nebuladb.api.backend import Backend, parse
from nebuladb.kv import check
from nebuladb.kv.answer import SessionResult
from nebuladb.kv.command import Command, Kind
from nebuladb.pb.nebula.v1 import session_pb2 as pb


class SessionService:
    """Each method takes a request's bytes and gives a response's."""

    name = "nebula.v1.Session"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Open(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.SessionOpenRequest, raw)
        if request.group:
            shard = self._backend.route_group(request.keyspace, request.group)
        else:
            shard = self._backend.route(request.keyspace, request.key)
        answer = await self._backend.propose(
            shard, Command(Kind.SESSION_OPEN, raw), self._backend.answer_within(context)
        )
        header = self._backend.header(shard.group, answer.revision)
        response = pb.SessionOpenResponse(header=header, group=shard.group)
        if isinstance(answer.result, SessionResult):
            response.id = answer.result.session
        return response.SerializeToString()

    async def Close(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.SessionCloseRequest, raw)
        shard = self._backend.route_group(request.keyspace, request.group)
        answer = await self._backend.propose(
            shard, Command(Kind.SESSION_CLOSE, raw), self._backend.answer_within(context)
        )
        header = self._backend.header(shard.group, answer.revision)
        return pb.SessionCloseResponse(header=header).SerializeToString()

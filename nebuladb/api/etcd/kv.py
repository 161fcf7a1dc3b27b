"""``etcdserverpb.KV``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nebuladb.api.etcd import txn
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.ranges import Ranges
from nebuladb.api.etcd.requests import (
    check_key,
    check_put,
    check_range,
    check_size,
    lone_key,
    plain_put,
    put_body,
    received,
)
from nebuladb.api.etcd.wire import delete_response, key_value, message_field
from nebuladb.api.kv import read_txn, reclaimed
from nebuladb.errors import NebulaError
from nebuladb.kv import check
from nebuladb.kv.answer import DeleteResult, PutResult, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.loans import Misses
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2


class KVService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._ranges = Ranges(face)

    async def Range(self, raw: bytes, context: Any) -> bytes:
        lone = lone_key(raw)
        if lone is not None:
            return await self._get(*lone, context)
        request = received(pb.RangeRequest, raw)
        check_range(request)
        return await self._ranges.answer(self._face.shard(context), request, context)

    async def _get(self, key: bytes, serializable: bool, context: Any) -> bytes:
        """One key as it is now."""
        face = self._face
        backend, group = face.backend, face.shard(context).group
        pump = backend.pump
        try:
            if not serializable:
                await pump.confirm(group, face.timeout(context))
            store = pump.store(group)
            try:
                found = store.get(key)
            except Misses as misses:
                store, found = await pump.looks.look(group, misses, lambda store: store.get(key))
        except NebulaError as error:
            error.group = group  # so that the replica gets its data anew, where that is damaged
            raise
        prefix = face.prefix(group, store.revision)
        if found is None:
            return prefix
        return b"".join((prefix, message_field(b"\x12", key_value(found)), b"\x20\x01"))

    async def RangeStream(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        request = received(pb.RangeRequest, raw, stream=True)
        check_range(request)
        async for response in self._ranges.stream(self._face.shard(context), request, context):
            yield response

    async def Put(self, raw: bytes, context: Any) -> bytes:
        body = plain_put(raw)
        if body is None:
            request = received(pb.PutRequest, raw)
            check_put(request)
            check_size(raw)
            body = put_body(request)
        face = self._face
        backend, shard = face.backend, face.shard(context)
        answer = await backend.propose(shard, Command(Kind.PUT, body), face.timeout(context))
        prefix = face.prefix(shard.group, answer.revision)
        if isinstance(answer.result, PutResult) and answer.result.previous is not None:
            return prefix + message_field(b"\x12", key_value(answer.result.previous))
        return prefix

    async def DeleteRange(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.DeleteRangeRequest, raw)
        check_key(request.key)
        check_size(raw)
        face = self._face
        backend, shard = face.backend, face.shard(context)
        body = kv_pb2.DeleteRequest(key=request.key, range_end=request.range_end, prev_kv=request.prev_kv)
        command = Command(Kind.DELETE, body.SerializeToString())
        answer = await backend.propose(shard, command, face.timeout(context))
        assert isinstance(answer.result, DeleteResult)
        return delete_response(face.prefix(shard.group, answer.revision), answer.result)

    async def Txn(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.TxnRequest, raw)
        branches = txn.taken_apart(request)
        face = self._face
        backend, shard = face.backend, face.shard(context)
        timeout = face.timeout(context)
        body = txn.body(branches)
        if branches.writes:
            check_size(raw)
            answer = await backend.propose(shard, Command(Kind.TXN, body), timeout)
            assert isinstance(answer.result, TxnResult)
            revision, result = answer.revision, answer.result
        else:
            ours = check.txn(kv_pb2.TxnRequest.FromString(body))
            local = txn.serializable(branches)
            revision, result = await read_txn(backend, shard, ours, timeout, serializable=local)
        return txn.encoded(face.prefix(shard.group, revision), revision, result)

    async def Compact(self, raw: bytes, context: Any) -> bytes:
        request = received(pb.CompactionRequest, raw)
        face = self._face
        backend, shard = face.backend, face.shard(context)
        body = kv_pb2.CompactRequest(revision=request.revision, physical=request.physical)
        answer = await backend.propose(shard, Command(Kind.COMPACT, body.SerializeToString()), face.timeout(context))
        if request.physical:
            await reclaimed(backend, shard, request.revision, context.time_remaining())
        return face.prefix(shard.group, answer.revision)

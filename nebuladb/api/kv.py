"""``nebula.v1.KV``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from nebuladb.api.backend import Backend, key_value, parse, session_fields
from nebuladb.api.scan import scan
from nebuladb.api.watch import watch
from nebuladb.errors import Corruption, WrongShard
from nebuladb.kv import check
from nebuladb.kv.answer import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.loans import Misses
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor


class KVService:
    """Each method takes a request's bytes and gives a response's."""

    name = "nebula.v1.KV"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Get(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.GetRequest, raw)
        check.key(request.key)
        shard = self._backend.route(request.keyspace, request.key, request.epoch)
        timeout = self._backend.timeout(context)
        store = await self._backend.current(
            shard, timeout, serializable=request.serializable, max_staleness=request.max_staleness
        )
        try:
            try:
                found = store.get(request.key, request.revision)
            except Misses as misses:
                store, found = await self._backend.pump.looks.look(
                    shard.group, misses, lambda store: store.get(request.key, request.revision)
                )
        except Corruption as error:
            error.group = shard.group  # so that the replica gets its data anew
            raise
        response = pb.GetResponse(header=self._backend.header(shard.group, store.revision))
        if found is not None:
            response.kv.CopyFrom(key_value(found))
        return response.SerializeToString()

    async def Put(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.PutRequest, raw)
        check.put(request)
        shard = self._backend.route(request.keyspace, request.key, request.epoch)
        command = Command(Kind.PUT, raw, request.epoch, **session_fields(request.session))
        answer = await self._backend.propose(shard, command, self._backend.timeout(context))
        response = pb.PutResponse(header=self._backend.header(shard.group, answer.revision))
        if isinstance(answer.result, PutResult) and answer.result.previous is not None:
            response.prev_kv.CopyFrom(key_value(answer.result.previous))
        return response.SerializeToString()

    async def Delete(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.DeleteRequest, raw)
        check.delete(request)
        shard = self._backend.route_range(request.keyspace, request.key, request.range_end, request.epoch)
        command = Command(Kind.DELETE, raw, request.epoch, **session_fields(request.session))
        answer = await self._backend.propose(shard, command, self._backend.timeout(context))
        response = pb.DeleteResponse(header=self._backend.header(shard.group, answer.revision))
        if isinstance(answer.result, DeleteResult):
            response.deleted = answer.result.deleted
            response.prev_kvs.extend(map(key_value, answer.result.previous))
        return response.SerializeToString()

    async def Txn(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.TxnRequest, raw)
        check.txn(request)
        shard = self._sole_shard(request)
        command = Command(Kind.TXN, raw, request.epoch, **session_fields(request.session))
        answer = await self._backend.propose(shard, command, self._backend.timeout(context))
        response = pb.TxnResponse(header=self._backend.header(shard.group, answer.revision))
        if isinstance(answer.result, TxnResult):
            response.succeeded = answer.result.succeeded
            response.results.extend(map(operation_result, answer.result.results))
        return response.SerializeToString()

    async def Compact(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.CompactRequest, raw)
        shard = self._backend.route_group(request.keyspace, request.group)
        answer = await self._backend.propose(shard, Command(Kind.COMPACT, raw), self._backend.timeout(context))
        return pb.CompactResponse(header=self._backend.header(shard.group, answer.revision)).SerializeToString()

    async def Scan(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        request = parse(pb.ScanRequest, raw)
        async for response in scan(self._backend, request, self._backend.timeout(context)):
            yield response.SerializeToString()

    async def Watch(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        request = parse(pb.WatchRequest, raw)
        check.key(request.key)
        async for response in watch(self._backend, request):
            yield response.SerializeToString()

    def _sole_shard(self, request: pb.TxnRequest) -> Descriptor:
        """The shard of every key of a transaction; across shards it needs two-phase commit, which is yet to come."""
        ranges = [(compare.key, compare.range_end) for compare in request.compare]
        for operation in (*request.success, *request.failure):
            which = operation.WhichOneof("operation")
            if which == "put":
                ranges.append((operation.put.key, b""))
            elif which == "delete":
                ranges.append((operation.delete.key, operation.delete.range_end))
            else:
                ranges.append((operation.range.key, operation.range.range_end))
        found: dict[int, Descriptor] = {}
        for key, end in ranges or [(b"\0", b"")]:
            shard = self._backend.route_range(request.keyspace, key, end, request.epoch)
            found[shard.group] = shard
        if len(found) > 1:
            raise WrongShard(
                f"the transaction's keys lie in {len(found)} shards; keep a transaction's keys in one shard"
            )
        return next(iter(found.values()))


def operation_result(result: PutResult | DeleteResult | RangeResult) -> pb.OperationResult:
    """The result of one operation of a transaction."""
    message = pb.OperationResult()
    if isinstance(result, PutResult):
        message.put.SetInParent()
        if result.previous is not None:
            message.put.prev_kv.CopyFrom(key_value(result.previous))
    elif isinstance(result, DeleteResult):
        message.delete.deleted = result.deleted
        message.delete.prev_kvs.extend(map(key_value, result.previous))
        message.delete.SetInParent()
    else:
        message.range.CopyFrom(_range(result.kvs, result.count, result.more))
    return message


def _range(kvs: Iterable[KeyValue], count: int, more: bool) -> pb.RangeResponse:
    return pb.RangeResponse(kvs=map(key_value, kvs), count=count, more=more)

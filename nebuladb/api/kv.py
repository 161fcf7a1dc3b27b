"""``nebula.v1.KV``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import nullcontext
from typing import Any, Final

from nebuladb.api.backend import Backend, key_value, parse, session_fields
from nebuladb.api.deliveries import ending
from nebuladb.api.scan import scan
from nebuladb.api.watch import watch
from nebuladb.errors import (
    Corruption,
    DeadlineExceeded,
    InvalidArgument,
    NebulaError,
    Outcome,
    TooManyRequests,
    WrongShard,
)
from nebuladb.kv import check
from nebuladb.kv.answer import DeleteResult, KeyValue, OperationResult, PutResult, TxnResult
from nebuladb.kv.branches import Branches
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.findings import Findings
from nebuladb.kv.loans import Misses
from nebuladb.kv.trail import Trail
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from nebuladb.shard import Descriptor

FEW_KEYS: Final = 16
"""A transaction that reads so many is over in 0.1 ms."""


class KVService:
    """Each method takes a request's bytes and gives a response's."""

    name = "nebula.v1.KV"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Get(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.GetRequest, raw)
        check.key(request.key)
        shard = self._backend.route(request.keyspace, request.key, request.epoch)
        timeout = self._backend.answer_within(context)
        store = await self._backend.current(
            shard, timeout, serializable=request.serializable, max_staleness=request.max_staleness
        )
        try:
            try:
                trail = Trail() if request.revision > 0 else None
                found = store.get(request.key, request.revision, trail)
            except Misses as misses:
                store, found = await self._backend.pump.looks.look(
                    shard.group, misses, lambda store: store.get(request.key, request.revision, trail)
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
        answer = await self._backend.propose(shard, command, self._backend.answer_within(context))
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
        answer = await self._backend.propose(shard, command, self._backend.answer_within(context))
        response = pb.DeleteResponse(header=self._backend.header(shard.group, answer.revision))
        if isinstance(answer.result, DeleteResult):
            response.deleted = answer.result.deleted
            response.prev_kvs.extend(map(key_value, answer.result.previous))
        return response.SerializeToString()

    async def Txn(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.TxnRequest, raw)
        branches = check.txn(request)
        shard = self._sole_shard(request, branches)
        timeout = self._backend.answer_within(context)
        if not branches.writes:
            revision, result = await read_txn(
                self._backend, shard, branches, timeout, serializable=request.serializable
            )
        elif request.serializable:
            raise InvalidArgument("a transaction that writes can't be serializable; leave that to those that only read")
        else:
            command = Command(Kind.TXN, raw, request.epoch, **session_fields(request.session))
            answer = await self._backend.propose(shard, command, timeout)
            assert isinstance(answer.result, TxnResult)
            revision, result = answer.revision, answer.result
        response = pb.TxnResponse(header=self._backend.header(shard.group, revision), succeeded=result.succeeded)
        response.results.extend(map(operation_result, result.results))
        return response.SerializeToString()

    async def Compact(self, raw: bytes, context: Any) -> bytes:
        check.control(len(raw))
        request = parse(pb.CompactRequest, raw)
        shard = self._backend.route_group(request.keyspace, request.group)
        timeout = self._backend.answer_within(context)
        answer = await self._backend.propose(shard, Command(Kind.COMPACT, raw), timeout)
        if request.physical:
            await reclaimed(self._backend, shard, request.revision, timeout)
        return pb.CompactResponse(header=self._backend.header(shard.group, answer.revision)).SerializeToString()

    async def Scan(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        request = parse(pb.ScanRequest, raw)
        async for response in scan(self._backend, request, self._backend.answer_within(context), ending(context)):
            encoded = response.SerializeToString()
            del response  # or there would be two of it, for as long as its client takes
            yield encoded
            del encoded  # while the next page is read

    async def Watch(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        request = parse(pb.WatchRequest, raw)
        check.key(request.key)
        async for response in watch(self._backend, request, ending(context)):
            encoded = response.SerializeToString()
            del response  # as in a scan
            yield encoded
            del encoded  # the next one may be long in coming

    def _sole_shard(self, request: pb.TxnRequest, branches: Branches) -> Descriptor:
        """The shard of every key of a transaction; across shards it needs two-phase commit, which is yet to come."""
        found: dict[int, Descriptor] = {}
        for key, end in list(branches.spans()) or [(b"\0", b"")]:
            shard = self._backend.route_range(request.keyspace, key, end, request.epoch)
            found[shard.group] = shard
        if len(found) > 1:
            raise WrongShard(
                f"the transaction's keys lie in {len(found)} shards; keep a transaction's keys in one shard"
            )
        return next(iter(found.values()))


async def read_txn(
    backend: Backend, shard: Descriptor, branches: Branches, timeout: float, *, serializable: bool
) -> tuple[int, TxnResult]:
    """What a transaction that writes nothing gives, and the revision that it was read at: no log entry (etcd 23)."""
    store = await backend.current(shard, timeout, serializable=serializable)
    findings, spans = Findings(), list(branches.spans())
    # One round confirms many reads, which all go on in one turn: twenty of 50,000 rows each would keep the loop for
    # longer than followers wait for a heartbeat. A few single keys are read in no time, unless they are old.
    long = (
        len(spans) > FEW_KEYS
        or any(end for _, end in spans)
        or any(asked.revision > 0 for _, asked in branches.plain())
    )
    try:
        async with asyncio.timeout(timeout) if long else nullcontext():
            store, result = await backend.pump.looks.read(
                shard.group, store, lambda store: store.read(branches, findings), backend.pace if long else None
            )
        return store.revision, result
    except TimeoutError:
        raise TooManyRequests("this node has too many transactions that read much; back off, or use Scan") from None
    except NebulaError as error:
        error.group = shard.group  # so that the replica gets its data anew, where that is damaged
        raise


async def reclaimed(backend: Backend, shard: Descriptor, revision: int, timeout: float | None) -> None:
    """Wait until this node has deleted what a compaction at `revision` superseded (etcd 25), for `timeout` seconds. An
    error never says that the request has failed: the compaction is done."""
    try:
        async with asyncio.timeout(timeout):
            await backend.pump.reclaims.wait(backend.pump.store(shard.group), revision)
    except TimeoutError:
        late = DeadlineExceeded("the compaction is done, and its deletion takes longer than this request may")
        late.outcome = Outcome.UNKNOWN
        raise late from None
    except NebulaError as error:
        error.outcome = Outcome.UNKNOWN
        raise


def operation_result(result: OperationResult) -> pb.OperationResult:
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
    elif isinstance(result, TxnResult):
        message.txn.succeeded = result.succeeded
        message.txn.results.extend(map(operation_result, result.results))
        message.txn.SetInParent()
    else:
        message.range.CopyFrom(_range(result.kvs, result.count, result.more))
    return message


def _range(kvs: Iterable[KeyValue], count: int, more: bool) -> pb.RangeResponse:
    return pb.RangeResponse(kvs=map(key_value, kvs), count=count, more=more)

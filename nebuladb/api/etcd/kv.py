"""``etcdserverpb.KV``."""

from __future__ import annotations

from typing import Any

from nebuladb.api.backend import parse
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.wire import key_value, message_field, number_field
from nebuladb.errors import Corruption
from nebuladb.kv import check
from nebuladb.kv.answer import DeleteResult, KeyValue, PutResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.loans import Misses
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2


class KVService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face

    async def Range(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.RangeRequest, raw)
        _key(request.key)
        backend, shard = self._face.backend, self._face.shard(context)
        store = await backend.current(shard, backend.timeout(context), serializable=request.serializable)
        found: KeyValue | None
        try:
            if request.range_end:
                result = store.range(
                    request.key,
                    request.range_end,
                    revision=request.revision,
                    limit=request.limit,
                    keys_only=request.keys_only,
                    count_only=request.count_only,
                )
                kvs, count, more = result.kvs, result.count, result.more
            else:
                try:
                    found = store.get(request.key, request.revision)
                except Misses as misses:
                    store, found = await backend.pump.looks.look(
                        shard.group, misses, lambda store: store.get(request.key, request.revision)
                    )
                kvs, count, more = (() if found is None else (found,)), int(found is not None), False
        except Corruption as error:
            error.group = shard.group  # so that the replica gets its data anew
            raise
        parts = [self._face.prefix(shard.group, store.revision)]
        if not request.count_only:
            parts += [message_field(b"\x12", key_value(kv)) for kv in kvs]
            parts += [number_field(b"\x18", more)]
        parts += [number_field(b"\x20", count)]
        return b"".join(parts)

    async def Put(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.PutRequest, raw)
        _key(request.key)
        backend, shard = self._face.backend, self._face.shard(context)
        body = kv_pb2.PutRequest(key=request.key, value=request.value, lease=request.lease, prev_kv=request.prev_kv)
        command = Command(Kind.PUT, body.SerializeToString())
        answer = await backend.propose(shard, command, backend.timeout(context))
        prefix = self._face.prefix(shard.group, answer.revision)
        if isinstance(answer.result, PutResult) and answer.result.previous is not None:
            return prefix + message_field(b"\x12", key_value(answer.result.previous))
        return prefix

    async def DeleteRange(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.DeleteRangeRequest, raw)
        _key(request.key)
        backend, shard = self._face.backend, self._face.shard(context)
        body = kv_pb2.DeleteRequest(key=request.key, range_end=request.range_end, prev_kv=request.prev_kv)
        answer = await backend.propose(shard, Command(Kind.DELETE, body.SerializeToString()), backend.timeout(context))
        parts = [self._face.prefix(shard.group, answer.revision)]
        if isinstance(answer.result, DeleteResult):
            parts += [number_field(b"\x10", answer.result.deleted)]
            parts += [message_field(b"\x1a", key_value(kv)) for kv in answer.result.previous]
        return b"".join(parts)

    async def Compact(self, raw: bytes, context: Any) -> bytes:
        request = parse(pb.CompactionRequest, raw)
        backend, shard = self._face.backend, self._face.shard(context)
        body = kv_pb2.CompactRequest(revision=request.revision)
        command = Command(Kind.COMPACT, body.SerializeToString())
        answer = await backend.propose(shard, command, backend.timeout(context))
        return self._face.prefix(shard.group, answer.revision)


def _key(key: bytes) -> None:
    if not key:
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: key is not provided")

"""``etcdserverpb.KV``."""

from __future__ import annotations

from typing import Any

from nebuladb.api.backend import parse
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.face import Face
from nebuladb.kv import check
from nebuladb.kv.command import Command, Kind
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2


class KVService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face

    async def Put(self, raw: bytes, context: Any) -> bytes:
        check.body(len(raw))
        request = parse(pb.PutRequest, raw)
        if not request.key:
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: key is not provided")
        backend, shard = self._face.backend, self._face.shard(context)
        body = kv_pb2.PutRequest(key=request.key, value=request.value, lease=request.lease, prev_kv=request.prev_kv)
        command = Command(Kind.PUT, body.SerializeToString())
        answer = await backend.propose(shard, command, backend.timeout(context))
        return pb.PutResponse(header=self._face.header(shard.group, answer.revision)).SerializeToString()

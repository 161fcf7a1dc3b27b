"""The writes that a client and a session have in common; they differ in how a request is sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from google.protobuf.message import Message

from nebuladb.client import methods
from nebuladb.client.methods import Method
from nebuladb.client.requests import built
from nebuladb.client.txn import Txn, compare, first_key, txn_result, writes, written
from nebuladb.client.types import CasResult, DeleteResult, LeaseInfo, PutResult, RangeResult, TxnResult, key_value
from nebuladb.errors import InvalidArgument
from nebuladb.ids import lease_group
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2

Answer = TypeVar("Answer", bound=Message)

WriteRequest = (
    kv_pb2.PutRequest
    | kv_pb2.DeleteRequest
    | kv_pb2.TxnRequest
    | lease_pb2.LeaseGrantRequest
    | lease_pb2.LeaseRevokeRequest
)


class Writes(ABC):
    """put, delete, txn and compare-and-set on one keyspace."""

    keyspace: str

    @abstractmethod
    async def _write(self, method: Method[Answer], request: WriteRequest, key: bytes, group: int = 0) -> Answer:
        """Send a write whose shard is `group`, or where that is 0, `key`'s."""

    @abstractmethod
    async def _read(self, method: Method[Answer], request: Message) -> Answer:
        """Send what writes nothing."""

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> PutResult:
        """Set `key`; with `lease`, until that ends. `prev_kv`: answer what it was. Raises TypeError for a value that
        isn't bytes."""
        request = built(
            kv_pb2.PutRequest, keyspace=self.keyspace, key=key, value=written(value), lease=lease, prev_kv=prev_kv
        )
        response = await self._write(methods.PUT, request, key)
        return PutResult(
            response.header.revision, key_value(response.prev_kv) if response.HasField("prev_kv") else None
        )

    async def delete(self, key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> DeleteResult:
        r"""Delete `key`, or every key in [key, range_end); the end b"\0" means no end."""
        request = built(kv_pb2.DeleteRequest, keyspace=self.keyspace, key=key, range_end=range_end, prev_kv=prev_kv)
        response = await self._write(methods.DELETE, request, key)
        return DeleteResult(response.header.revision, response.deleted, tuple(map(key_value, response.prev_kvs)))

    def txn(self) -> Txn:
        """A transaction to be built: ``await client.txn().when("version", k, "=", 0).put(k, v).commit()``."""
        return Txn(self._commit)

    async def compare_and_set(
        self, key: bytes, value: bytes, *, expected: bytes | None = None, mod_revision: int | None = None
    ) -> CasResult:
        """Set `key` if its value is `expected` (None: if it doesn't exist), or if `mod_revision` changed it last."""
        if mod_revision is None:
            condition = compare("version", key, "=", 0) if expected is None else compare("value", key, "=", expected)
        elif expected is None:
            condition = compare("mod", key, "=", mod_revision)
        else:
            raise InvalidArgument("compare with a value or with a revision, not with both")
        txn = self.txn().put(key, value).get(key, branch="else")
        txn.request.compare.append(condition)
        result = await txn.commit()
        found = result.results[0] if result.results else None
        current = found.kvs[0] if isinstance(found, RangeResult) and found.kvs else None
        return CasResult(result.succeeded, result.revision, current)

    async def grant_lease(self, ttl: int, *, key: bytes = b"", lease: int = 0) -> LeaseInfo:
        """A lease of `ttl` seconds (at least 2) in `key`'s shard. `lease`: its id; 0 = the server picks one."""
        request = built(lease_pb2.LeaseGrantRequest, keyspace=self.keyspace, ttl=ttl, id=lease, key=key)
        response = await self._write(methods.LEASE_GRANT, request, key)
        return LeaseInfo(response.id, response.ttl, response.ttl, ())

    async def revoke_lease(self, lease: int) -> None:
        """End a lease, and delete the keys attached to it."""
        request = built(lease_pb2.LeaseRevokeRequest, keyspace=self.keyspace, id=lease)
        await self._write(methods.LEASE_REVOKE, request, b"", lease_group(lease))

    async def _commit(self, request: kv_pb2.TxnRequest) -> TxnResult:
        request.keyspace = self.keyspace
        key = first_key(request)
        if writes(request):
            return txn_result(await self._write(methods.TXN, request, key))
        return txn_result(await self._read(methods.TXN_READ, request))

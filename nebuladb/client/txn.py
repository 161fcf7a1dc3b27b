"""Transactions: a builder, and its translation to and from the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal, Self, cast

from nebuladb.client.requests import built
from nebuladb.client.types import DeleteResult, PutResult, RangeResult, TxnResult, key_value
from nebuladb.errors import InvalidArgument
from nebuladb.pb.nebula.v1 import kv_pb2

Target = Literal["version", "create", "mod", "value", "lease"]
Relation = Literal["=", "!=", ">", "<"]
Branch = Literal["then", "else"]

TARGETS: Final = {
    "version": kv_pb2.Compare.VERSION,
    "create": kv_pb2.Compare.CREATE,
    "mod": kv_pb2.Compare.MOD,
    "value": kv_pb2.Compare.VALUE,
    "lease": kv_pb2.Compare.LEASE,
}
RELATIONS: Final = {
    "=": kv_pb2.Compare.EQUAL,
    "!=": kv_pb2.Compare.NOT_EQUAL,
    ">": kv_pb2.Compare.GREATER,
    "<": kv_pb2.Compare.LESS,
}


def compare(target: Target, key: bytes, relation: Relation, to: int | bytes, range_end: bytes = b"") -> kv_pb2.Compare:
    """A condition on `key`, or on every key of a range. A missing key has no value, and the numbers 0. Raises
    `InvalidArgument`."""
    if target not in TARGETS:
        raise InvalidArgument(f"target is {target!r}; give one of {', '.join(TARGETS)}")
    if relation not in RELATIONS:
        raise InvalidArgument(f"relation is {relation!r}; give one of {' '.join(RELATIONS)}")
    if (target == "value") is not isinstance(to, bytes):
        raise InvalidArgument(f"{target} compares with {'bytes' if target == 'value' else 'a number'}, not {to!r}")
    condition = built(kv_pb2.Compare, value=to) if isinstance(to, bytes) else built(kv_pb2.Compare, number=to)
    condition.result, condition.target = RELATIONS[relation], TARGETS[target]
    condition.key, condition.range_end = key, range_end
    return condition


def written(value: bytes | None) -> bytes:
    """What a write is given. Raises TypeError for None, which the wire would take for an empty value."""
    if value is None:
        raise TypeError("value is None; give bytes, or delete the key")
    return value


class TxnBuilder:
    """If every condition holds, the operations of the branch "then", else those of "else": atomically, in one shard.

    At most 128 operations a branch, and each key is written once.
    """

    def __init__(self) -> None:
        self.request = kv_pb2.TxnRequest()

    def when(self, target: Target, key: bytes, relation: Relation, to: int | bytes, range_end: bytes = b"") -> Self:
        """Add a condition; `compare` says of which kind."""
        self.request.compare.append(compare(target, key, relation, to, range_end))
        return self

    def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False, branch: Branch = "then") -> Self:
        """Gives a `PutResult`. Raises TypeError for a value that isn't bytes."""
        operation = built(kv_pb2.TxnPut, key=key, value=written(value), lease=lease, prev_kv=prev_kv)
        self._add(branch, kv_pb2.Operation(put=operation))
        return self

    def get(
        self, key: bytes, range_end: bytes = b"", *, limit: int = 0, keys_only: bool = False, branch: Branch = "then"
    ) -> Self:
        """Gives a `RangeResult`, of what the operations before it left."""
        operation = built(kv_pb2.RangeRequest, key=key, range_end=range_end, limit=limit, keys_only=keys_only)
        self._add(branch, kv_pb2.Operation(range=operation))
        return self

    def delete(self, key: bytes, range_end: bytes = b"", *, prev_kv: bool = False, branch: Branch = "then") -> Self:
        """Gives a `DeleteResult`."""
        operation = kv_pb2.TxnDelete(key=key, range_end=range_end, prev_kv=prev_kv)
        self._add(branch, kv_pb2.Operation(delete=operation))
        return self

    def _built(self) -> kv_pb2.TxnRequest:
        """What was built until now; each commit is a transaction of its own."""
        request = kv_pb2.TxnRequest()
        request.CopyFrom(self.request)
        return request

    def _add(self, branch: Branch, operation: kv_pb2.Operation) -> None:
        if branch not in ("then", "else"):
            raise InvalidArgument(f"branch is {branch!r}; give 'then' or 'else'")
        (self.request.success if branch == "then" else self.request.failure).append(operation)


class Txn(TxnBuilder):
    """A transaction of the asynchronous client, or of one of its sessions."""

    def __init__(self, commit: Callable[[kv_pb2.TxnRequest], Awaitable[TxnResult]]) -> None:
        """`commit` sends the request."""
        super().__init__()
        self._commit = commit

    async def commit(self) -> TxnResult:
        """Run it, as it was built until now."""
        return await self._commit(self._built())


class SyncTxn(TxnBuilder):
    """A transaction of the synchronous client, or of one of its sessions."""

    def __init__(self, commit: Callable[[kv_pb2.TxnRequest], TxnResult]) -> None:
        """`commit` sends the request, and waits."""
        super().__init__()
        self._commit = commit

    def commit(self) -> TxnResult:
        """Run it, as it was built until now."""
        return self._commit(self._built())


def writes(request: kv_pb2.TxnRequest) -> bool:
    """Whether any operation of either branch writes."""
    return any(o.WhichOneof("operation") != "range" for o in (*request.success, *request.failure))


def first_key(request: kv_pb2.TxnRequest) -> bytes:
    """A key that tells the shard; the others must be there as well."""
    for condition in request.compare:
        return condition.key
    for operation in (*request.success, *request.failure):
        which = operation.WhichOneof("operation")
        if which is not None:
            return cast(bytes, getattr(operation, which).key)
    raise InvalidArgument("a transaction needs a condition or an operation")


def txn_result(response: kv_pb2.TxnResponse) -> TxnResult:
    """From the wire."""
    revision = response.header.revision
    results = tuple(_result(revision, result) for result in response.results)
    return TxnResult(revision, response.succeeded, results)


def _result(revision: int, message: kv_pb2.OperationResult) -> PutResult | DeleteResult | RangeResult:
    which = message.WhichOneof("result")
    if which == "range":
        found = message.range
        return RangeResult(tuple(key_value(kv) for kv in found.kvs), found.count, found.more)
    if which == "delete":
        previous = tuple(key_value(kv) for kv in message.delete.prev_kvs)
        return DeleteResult(revision, message.delete.deleted, previous)
    return PutResult(revision, key_value(message.put.prev_kv) if message.put.HasField("prev_kv") else None)

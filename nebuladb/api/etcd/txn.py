"""etcd's transactions as ``nebula.v1``'s, and their answers as etcd gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.requests import check_key, check_put, check_range
from nebuladb.api.etcd.wire import delete_response, key_value, message_field, range_response, varint
from nebuladb.errors import TooManyOperations
from nebuladb.kv import check
from nebuladb.kv.answer import DeleteResult, OperationResult, PutResult, RangeResult, TxnResult
from nebuladb.kv.limits import MAX_TXN_OPERATIONS
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2

_UNIONS: Final[dict[int, str]] = {
    pb.Compare.VERSION: "version",
    pb.Compare.CREATE: "create_revision",
    pb.Compare.MOD: "mod_revision",
    pb.Compare.VALUE: "value",
    pb.Compare.LEASE: "lease",
}
"""Where a compare's operand is, by target; one in another field counts as none."""
_RESULTS: Final = frozenset(pb.Compare.CompareResult.values())


def translated(request: pb.TxnRequest) -> kv_pb2.TxnRequest:
    """`request`, whose keyspace the caller knows. Raises what etcd refuses it with."""
    message = kv_pb2.TxnRequest()
    _fill(message, request, MAX_TXN_OPERATIONS)
    check.txn(message)
    return message


def serializable(request: pb.TxnRequest) -> bool:
    """Whether all of a transaction's operations are ranges that may be old, and there are any (etcd 23)."""
    operations = (*request.success, *request.failure)
    return bool(operations) and all(
        operation.request_range.serializable
        if operation.WhichOneof("request") == "request_range"
        else operation.WhichOneof("request") == "request_txn" and serializable(operation.request_txn)
        for operation in operations
    )


def _fill(message: kv_pb2.TxnRequest | kv_pb2.NestedTxn, request: pb.TxnRequest, allowed: int) -> None:
    most = max(len(request.compare), len(request.success), len(request.failure))
    if most > allowed:
        raise TooManyOperations
    for compare in request.compare:
        check_key(compare.key)
        message.compare.append(_compare(compare))
    for operation in request.success:
        _operation(message.success.add(), operation, allowed - most)
    for operation in request.failure:
        _operation(message.failure.add(), operation, allowed - most)


def _operation(message: kv_pb2.Operation, operation: pb.RequestOp, allowed: int) -> None:
    match operation.WhichOneof("request"):
        case "request_range":
            ranged = operation.request_range
            check_range(ranged)
            message.range.CopyFrom(range_message(ranged))
        case "request_put":
            put = operation.request_put
            check_put(put)
            message.put.CopyFrom(
                kv_pb2.TxnPut(
                    key=put.key,
                    value=put.value,
                    lease=put.lease,
                    prev_kv=put.prev_kv,
                    ignore_value=put.ignore_value,
                    ignore_lease=put.ignore_lease,
                )
            )
        case "request_delete_range":
            delete = operation.request_delete_range
            check_key(delete.key)
            message.delete.key, message.delete.range_end = delete.key, delete.range_end
            message.delete.prev_kv = delete.prev_kv
        case "request_txn":
            message.txn.SetInParent()
            _fill(message.txn, operation.request_txn, allowed)
        case _:
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: key not found")  # etcd 24


def range_message(request: pb.RangeRequest) -> kv_pb2.RangeRequest:
    """A range of a transaction."""
    return kv_pb2.RangeRequest(
        key=request.key,
        range_end=request.range_end,
        limit=request.limit,
        revision=request.revision,
        keys_only=request.keys_only,
        count_only=request.count_only,
        order=kv_pb2.RangeRequest.Order.ValueType(request.sort_order),
        target=kv_pb2.RangeRequest.Target.ValueType(request.sort_target),
        min_mod_revision=request.min_mod_revision,
        max_mod_revision=request.max_mod_revision,
        min_create_revision=request.min_create_revision,
        max_create_revision=request.max_create_revision,
    )


def _compare(compare: pb.Compare) -> kv_pb2.Compare:
    """A compare. etcd knows no bad target or result: one that it has no name for is decided without looking, and what
    it decides can be said otherwise."""
    target, result = int(compare.target), int(compare.result)
    message = kv_pb2.Compare(key=compare.key, range_end=compare.range_end)
    union = _UNIONS.get(target)
    if union is not None and result in _RESULTS:
        message.target = kv_pb2.Compare.Target.ValueType(target)
        message.result = kv_pb2.Compare.Result.ValueType(result)
        if compare.WhichOneof("target_union") == union:
            if target == pb.Compare.VALUE:
                message.value = compare.value
            else:
                message.number = getattr(compare, _UNIONS[target])
    elif target == pb.Compare.VALUE:
        message.result = kv_pb2.Compare.GREATER  # there is a key: its version is above 0
    elif result == pb.Compare.EQUAL or result not in _RESULTS:
        message.result, message.number = kv_pb2.Compare.GREATER, -1  # always
    else:
        message.result = kv_pb2.Compare.LESS  # never
    return message


# --- answers


def encoded(prefix: bytes, revision: int, result: TxnResult) -> bytes:
    """``TxnResponse``: `prefix` is its header, `revision` the store's after it."""
    inner = _Inner(revision - _writes(result), revision)
    return b"".join((prefix, *inner.txn(result)))


def _writes(result: OperationResult) -> bool:
    """Whether it changed anything: deletions of nothing don't."""
    if isinstance(result, TxnResult):
        return any(map(_writes, result.results))
    return isinstance(result, PutResult) or (isinstance(result, DeleteResult) and result.deleted > 0)


class _Inner:
    """The answers of a transaction's operations, in order: their headers have a revision and nothing else, the one
    before the transaction until something has changed (etcd 24)."""

    def __init__(self, before: int, after: int) -> None:
        self._header = message_field(b"\x0a", b"\x18" + varint(before))
        self._after = message_field(b"\x0a", b"\x18" + varint(after))

    def txn(self, result: TxnResult) -> Sequence[bytes]:
        """Fields of ``TxnResponse`` but for the header."""
        parts = [b"\x10\x01" if result.succeeded else b""]
        parts += [message_field(b"\x1a", self._operation(one)) for one in result.results]
        return parts

    def _operation(self, result: OperationResult) -> bytes:
        """``ResponseOp``"""
        if _writes(result) and not isinstance(result, TxnResult):
            self._header = self._after
        match result:
            case RangeResult(kvs, count, more):
                return message_field(b"\x0a", range_response(self._header, map(key_value, kvs), count, more=more))
            case PutResult(previous):
                shown = b"" if previous is None else message_field(b"\x12", key_value(previous))
                return message_field(b"\x12", self._header + shown)
            case DeleteResult():
                return message_field(b"\x1a", delete_response(self._header, result))
            case TxnResult():
                return message_field(b"\x22", b"".join((b"\x0a\x00", *self.txn(result))))

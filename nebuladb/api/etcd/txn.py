"""etcd's transactions as ``nebula.v1``'s, and their answers as etcd gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.requests import check_key, check_put, check_range
from nebuladb.api.etcd.wire import delete_response, key_value, message_field, range_response, varint
from nebuladb.errors import TooManyOperations
from nebuladb.kv.answer import DeleteResult, OperationResult, PutResult, RangeResult, TxnResult
from nebuladb.kv.limits import MAX_TXN_DEPTH, MAX_TXN_OPERATIONS, MAX_TXN_TOTAL
from nebuladb.kv.overlap import check_once
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
_FILTERS: Final = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
_RESULTS: Final = frozenset(pb.Compare.CompareResult.values())


def translated(request: pb.TxnRequest) -> kv_pb2.TxnRequest:
    """`request`, whose keyspace the caller knows. Raises what etcd refuses it with: its checks and ours are the same,
    so what passes here passes at apply."""
    message = kv_pb2.TxnRequest()
    _fill(message, request, MAX_TXN_OPERATIONS, 0)
    check_once(message.success[:])
    check_once(message.failure[:])
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


def _fill(message: kv_pb2.TxnRequest | kv_pb2.NestedTxn, request: pb.TxnRequest, allowed: int, depth: int) -> int:
    """How many compares and operations there are, with those of nested ones. Repeated fields are counted and then
    sliced, as in ``kv.check``."""
    most = max(len(request.compare), len(request.success), len(request.failure))
    if most > allowed or depth > MAX_TXN_DEPTH:
        raise TooManyOperations
    compares, success, failure = request.compare[:], request.success[:], request.failure[:]
    for compare in compares:
        check_key(compare.key)
        _compare(message.compare.add(), compare)
    total = len(compares)
    for operation in success:
        total += _operation(message.success.add(), operation, allowed - most, depth)
    for operation in failure:
        total += _operation(message.failure.add(), operation, allowed - most, depth)
    if total > MAX_TXN_TOTAL:
        raise TooManyOperations
    return total


def _operation(message: kv_pb2.Operation, operation: pb.RequestOp, allowed: int, depth: int) -> int:
    match operation.WhichOneof("request"):
        case "request_put":
            put = operation.request_put
            check_put(put)
            _put(message.put, put)
        case "request_range":
            ranged = operation.request_range
            check_range(ranged)
            _range(message.range, ranged)
        case "request_delete_range":
            delete = operation.request_delete_range
            check_key(delete.key)
            message.delete.key, message.delete.range_end = delete.key, delete.range_end
            message.delete.prev_kv = delete.prev_kv
        case "request_txn":
            message.txn.SetInParent()
            return 1 + _fill(message.txn, operation.request_txn, allowed, depth + 1)
        case _:
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: key not found")  # etcd 24
    return 1


def _put(message: kv_pb2.TxnPut, request: pb.PutRequest) -> None:
    """Fields that are rarely set are set rarely: this and `_range` run for every transaction."""
    message.key, message.value = request.key, request.value
    if request.lease:
        message.lease = request.lease
    if request.prev_kv:
        message.prev_kv = True
    if request.ignore_value:
        message.ignore_value = True
    if request.ignore_lease:
        message.ignore_lease = True


def _range(message: kv_pb2.RangeRequest, request: pb.RangeRequest) -> None:
    message.key = request.key
    if request.range_end:
        message.range_end = request.range_end
    if request.limit:
        message.limit = request.limit
    if request.revision:
        message.revision = request.revision
    if request.keys_only:
        message.keys_only = True
    if request.count_only:
        message.count_only = True
    if request.sort_order or request.sort_target:
        message.order = kv_pb2.RangeRequest.Order.ValueType(request.sort_order)
        message.target = kv_pb2.RangeRequest.Target.ValueType(request.sort_target)
    for name in _FILTERS:
        if bound := getattr(request, name):
            setattr(message, name, bound)


def _compare(message: kv_pb2.Compare, compare: pb.Compare) -> None:
    """etcd knows no bad target or result: one that it has no name for is decided without looking, and what it decides
    can be said otherwise."""
    target, result = int(compare.target), int(compare.result)
    message.key = compare.key
    if compare.range_end:
        message.range_end = compare.range_end
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

"""etcd's transactions as ``nebula.v1``'s, and their answers as etcd gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.requests import check_key, check_put, check_range
from nebuladb.api.etcd.wire import (
    WORD,
    bytes_field,
    delete_response,
    key_value,
    message_field,
    number_field,
    range_response,
    varint,
)
from nebuladb.errors import TooManyOperations
from nebuladb.kv.answer import DeleteResult, OperationResult, PutResult, RangeResult, TxnResult
from nebuladb.kv.branches import Branches, Operation
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
_RANGE_TAGS: Final = (b"\x18", b"\x20", b"\x28", b"\x30", b"\x38", b"\x40", b"\x48", b"\x50", b"\x58", b"\x60")
"""Those of ``nebula.v1.RangeRequest``'s numbers, from `limit` on."""
_RESULTS: Final = frozenset(pb.Compare.CompareResult.values())


def taken_apart(request: pb.TxnRequest) -> Branches:
    """`request`, checked. Raises what etcd refuses it with: its checks and ours are the same, so what passes here
    passes at apply."""
    branches, _ = _checked(request, MAX_TXN_OPERATIONS, 0)
    check_once(branches.success)
    check_once(branches.failure)
    return branches


def serializable(branches: Branches) -> bool:
    """Whether all of a transaction's operations are ranges that may be old, and there are any (etcd 23)."""
    operations = (*branches.success, *branches.failure)
    return bool(operations) and all(
        asked.serializable if which == "range" else which == "txn" and serializable(asked)
        for which, asked in operations
    )


def _checked(request: pb.TxnRequest, allowed: int, depth: int) -> tuple[Branches, int]:
    """With how many compares and operations there are, with those of nested ones. Repeated fields are counted and then
    sliced, as in ``kv.check``."""
    compares, success, failure = request.compare, request.success, request.failure
    most = max(len(compares), len(success), len(failure))
    if most > allowed or depth > MAX_TXN_DEPTH:
        raise TooManyOperations
    conditions = compares[:]
    for compare in conditions:
        check_key(compare.key)
    total = len(conditions)
    taken: tuple[list[Operation], list[Operation]] = [], []
    for branch, operations in zip((success, failure), taken, strict=True):
        for operation in branch[:]:
            asked: Any
            match operation.WhichOneof("request"):
                case "request_put":
                    asked = operation.request_put
                    check_put(asked)
                    operations.append(("put", asked))
                case "request_range":
                    asked = operation.request_range
                    check_range(asked)
                    operations.append(("range", asked))
                case "request_delete_range":
                    asked = operation.request_delete_range
                    check_key(asked.key)
                    operations.append(("delete", asked))
                case "request_txn":
                    asked, more = _checked(operation.request_txn, allowed - most, depth + 1)
                    operations.append(("txn", asked))
                    total += more
                case _:
                    raise EtcdError("INVALID_ARGUMENT", "etcdserver: key not found")  # etcd 24
            total += 1
    if total > MAX_TXN_TOTAL:
        raise TooManyOperations
    return Branches(conditions, *taken), total


# --- the same as ``nebula.v1`` has it: bytes, which need no message object


def body(branches: Branches) -> bytes:
    """A ``TxnRequest`` of ``nebula.v1``."""
    return _fields(branches, b"\x12", b"\x1a", b"\x22")


def _fields(branches: Branches, compare: bytes, success: bytes, failure: bytes) -> bytes:
    """Of a transaction, by the tags that its fields have."""
    parts = [message_field(compare, _compare(one)) for one in branches.compares]
    parts += [message_field(success, _operation(*one)) for one in branches.success]
    parts += [message_field(failure, _operation(*one)) for one in branches.failure]
    return b"".join(parts)


def _operation(which: str, asked: Any) -> bytes:
    """``Operation``"""
    match which:
        case "put":
            return message_field(b"\x12", _put(asked))
        case "range":
            return message_field(b"\x0a", _range(asked))
        case "delete":
            fields = bytes_field(b"\x0a", asked.key), bytes_field(b"\x12", asked.range_end)
            return message_field(b"\x1a", b"".join((*fields, number_field(b"\x18", asked.prev_kv))))
    return message_field(b"\x22", _fields(asked, b"\x0a", b"\x12", b"\x1a"))


def _put(put: pb.PutRequest) -> bytes:
    """``TxnPut``"""
    key, value = put.key, put.value
    fields = b"".join((b"\x0a", varint(len(key)), key, b"\x12", varint(len(value)), value))
    if put.lease or put.prev_kv or put.ignore_value or put.ignore_lease:
        fields += number_field(b"\x18", put.lease & WORD) + number_field(b"\x20", put.prev_kv)
        fields += number_field(b"\x28", put.ignore_value) + number_field(b"\x30", put.ignore_lease)
    return fields


def _range(ranged: pb.RangeRequest) -> bytes:
    """``RangeRequest``"""
    numbers = (
        ranged.limit, ranged.revision, ranged.keys_only, ranged.count_only, ranged.sort_order, ranged.sort_target,
        ranged.min_mod_revision, ranged.max_mod_revision, ranged.min_create_revision, ranged.max_create_revision,
    )  # fmt: skip
    fields = bytes_field(b"\x0a", ranged.key) + bytes_field(b"\x12", ranged.range_end)
    if any(numbers):
        fields += b"".join([number_field(tag, one & WORD) for tag, one in zip(_RANGE_TAGS, numbers, strict=True)])
    return fields


def _compare(compare: pb.Compare) -> bytes:
    """``Compare``. etcd knows no bad target or result: one that it has no name for is decided without looking, and what
    it decides can be said otherwise."""
    target, result = int(compare.target), int(compare.result)
    subject = bytes_field(b"\x1a", compare.key) + bytes_field(b"\x22", compare.range_end)
    union = _UNIONS.get(target)
    if union is not None and result in _RESULTS:
        head = number_field(b"\x08", result) + number_field(b"\x10", target) + subject
        if compare.WhichOneof("target_union") != union:
            return head
        if target == pb.Compare.VALUE:
            return head + bytes_field(b"\x32", compare.value)
        return head + number_field(b"\x28", getattr(compare, _UNIONS[target]) & WORD)
    if target == pb.Compare.VALUE:
        return number_field(b"\x08", kv_pb2.Compare.GREATER) + subject  # there is a key: its version is above 0
    if result == pb.Compare.EQUAL or result not in _RESULTS:
        return number_field(b"\x08", kv_pb2.Compare.GREATER) + subject + number_field(b"\x28", -1 & WORD)  # always
    return number_field(b"\x08", kv_pb2.Compare.LESS) + subject  # never


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

"""What can be said of a request without looking at any state.

The api refuses with these checks before it proposes, and apply repeats them, since a log may hold anything (S21, S22).
Each raises an error of ``nebuladb.errors`` or returns.
"""

from __future__ import annotations

from typing import Any, Final

from nebuladb.errors import InvalidArgument, LeaseTtlTooLarge, RequestTooLarge, TooManyOperations
from nebuladb.kv.branches import Branches, Operation
from nebuladb.kv.limits import (
    MAX_CONTROL_BYTES,
    MAX_LEASE_TTL,
    MAX_REQUEST_BYTES,
    MAX_TXN_DEPTH,
    MAX_TXN_OPERATIONS,
    MAX_TXN_TOTAL,
    MIN_LEASE_TTL,
)
from nebuladb.kv.overlap import check_once
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2

TO_THE_LAST: Final = b"\0"
"""As a range's end: every key from its start on (etcd 1)."""

_RESULTS: Final = frozenset(kv_pb2.Compare.Result.values())
_TARGETS: Final = frozenset(kv_pb2.Compare.Target.values())
_ORDERS: Final = frozenset(kv_pb2.RangeRequest.Order.values())
_SORTED: Final = frozenset(kv_pb2.RangeRequest.Target.values())


def body(size: int) -> None:
    """A request of `size` bytes."""
    if size > MAX_REQUEST_BYTES:
        raise RequestTooLarge(f"the request has {size} bytes, {MAX_REQUEST_BYTES} are allowed; split it")


def control(size: int) -> None:
    """A request of `size` bytes that gets through whatever waits. (It may have any fields that nobody knows.)"""
    if size > MAX_CONTROL_BYTES:
        raise RequestTooLarge(f"the request has {size} bytes; one of its kind has {MAX_CONTROL_BYTES} at most")


def key(name: bytes) -> None:
    """A key must not be empty."""
    if not name:
        raise InvalidArgument("a key is not provided; a range from the very first key on begins at b'\\0'")


def put(request: kv_pb2.PutRequest | kv_pb2.TxnPut) -> None:
    """A put, alone or in a transaction."""
    key(request.key)
    if request.ignore_value and request.value:
        raise InvalidArgument("a value is provided, and is to be ignored")
    if request.ignore_lease and request.lease:
        raise InvalidArgument("a lease is provided, and is to be ignored")


def delete(request: kv_pb2.DeleteRequest | kv_pb2.TxnDelete) -> None:
    """A deletion, alone or in a transaction."""
    key(request.key)


def range_(request: kv_pb2.RangeRequest) -> None:
    """A range: a key, and an order that exists (etcd 4)."""
    key(request.key)
    if request.order not in _ORDERS or request.target not in _SORTED:
        raise InvalidArgument(f"sort order {request.order} by target {request.target} does not exist")


def txn(request: kv_pb2.TxnRequest) -> Branches:
    """A transaction: number of operations, compares, and no key written twice in a branch (etcd 17, 18). Returns it
    taken apart."""
    branches, _ = _txn(request, MAX_TXN_OPERATIONS, 0)
    check_once(branches.success)
    check_once(branches.failure)
    return branches


def _txn(request: kv_pb2.TxnRequest | kv_pb2.NestedTxn, allowed: int, depth: int) -> tuple[Branches, int]:
    """With the number of its operations, those of nested ones too: each level takes from what those below may have.

    It runs on every replica for every transaction. A repeated field is sliced before it is gone through: to go through
    one itself ends with an exception within the library, which costs as much as all else here. But first it is counted:
    a slice makes an object of each element, and a message of 2 MiB may have a million of them, of two bytes each, for
    which the library's table of living objects has been seen to take 15 s of the loop's time.
    """
    compares, success, failure = request.compare, request.success, request.failure
    sizes = len(compares), len(success), len(failure)
    most, total = max(sizes), sum(sizes)
    if most > allowed:
        raise TooManyOperations(f"a transaction has {most} operations, {allowed} are allowed here; split it")
    if depth > MAX_TXN_DEPTH:
        raise TooManyOperations(f"transactions are nested {depth} deep, {MAX_TXN_DEPTH} are allowed; split them")
    conditions = compares[:]
    for compare in conditions:
        if not compare.key:
            key(b"")
        if compare.result not in _RESULTS:
            raise InvalidArgument(f"compare result {compare.result} does not exist")
        if compare.target not in _TARGETS:
            raise InvalidArgument(f"compare target {compare.target} does not exist")
    taken: list[list[Operation]] = []
    for branch in (success, failure):
        operations: list[Operation] = []
        for operation in branch[:]:
            asked: Any
            which = operation.WhichOneof("operation")
            if which == "put":
                asked = operation.put
                put(asked)
            elif which == "range":
                asked = operation.range
                range_(asked)
            elif which == "delete":
                asked = operation.delete
                delete(asked)
            elif which == "txn":
                asked, more = _txn(operation.txn, allowed - most, depth + 1)
                total += more
            else:
                raise InvalidArgument("an operation of a transaction is empty")
            if total > MAX_TXN_TOTAL:
                raise TooManyOperations(f"nested transactions have {MAX_TXN_TOTAL} operations at most; split them")
            operations.append((which, asked))
        taken.append(operations)
    return Branches(conditions, *taken), total


def lease_grant(request: lease_pb2.LeaseGrantRequest) -> None:
    """A grant: the TTL is not too long. (Any id may be chosen, a negative one too, as in etcd.)"""
    if request.ttl > MAX_LEASE_TTL:
        raise LeaseTtlTooLarge(f"a TTL of {request.ttl} s is too large; {MAX_LEASE_TTL} s are allowed")


def granted_ttl(ttl: int) -> int:
    """What a grant that asks for `ttl` seconds gets."""
    return max(ttl, MIN_LEASE_TTL)

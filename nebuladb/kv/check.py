"""What can be said of a request without looking at any state.

The api refuses with these checks before it proposes, and apply repeats them, since a log may hold anything (S21, S22).
Each raises an error of ``nebuladb.errors`` or returns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from nebuladb.errors import DuplicateKey, InvalidArgument, LeaseTtlTooLarge, RequestTooLarge, TooManyOperations
from nebuladb.kv.limits import MAX_LEASE_TTL, MAX_REQUEST_BYTES, MAX_TXN_OPERATIONS, MIN_LEASE_TTL
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2

TO_THE_LAST: Final = b"\0"
"""As a range's end: every key from its start on (etcd 1)."""

_RESULTS: Final = frozenset(kv_pb2.Compare.Result.values())
_TARGETS: Final = frozenset(kv_pb2.Compare.Target.values())


def body(size: int) -> None:
    """A request of `size` bytes."""
    if size > MAX_REQUEST_BYTES:
        raise RequestTooLarge(f"the request has {size} bytes, {MAX_REQUEST_BYTES} are allowed; split it")


def key(name: bytes) -> None:
    """A key must not be empty."""
    if not name:
        raise InvalidArgument("a key is not provided")


def put(request: kv_pb2.PutRequest) -> None:
    """A put."""
    key(request.key)


def delete(request: kv_pb2.DeleteRequest) -> None:
    """A deletion."""
    key(request.key)


def txn(request: kv_pb2.TxnRequest) -> None:
    """A transaction: number of operations, compares, and no key written twice in a branch (etcd 17, 18)."""
    most = max(len(request.compare), len(request.success), len(request.failure))
    if most > MAX_TXN_OPERATIONS:
        raise TooManyOperations(f"a transaction has {most} operations, {MAX_TXN_OPERATIONS} are allowed; split it")
    for compare in request.compare:
        key(compare.key)
        if compare.result not in _RESULTS:
            raise InvalidArgument(f"compare result {compare.result} does not exist")
        if compare.target not in _TARGETS:
            raise InvalidArgument(f"compare target {compare.target} does not exist")
    _operations(request.success)
    _operations(request.failure)


def writes(request: kv_pb2.TxnRequest) -> bool:
    """Whether a branch of the transaction writes; if none does, it needs no log entry (etcd 23)."""
    return any(o.WhichOneof("operation") != "range" for branch in (request.success, request.failure) for o in branch)


def _operations(operations: Iterable[kv_pb2.Operation]) -> None:
    puts: list[bytes] = []
    deletes: list[tuple[bytes, bytes]] = []
    for operation in operations:
        match operation.WhichOneof("operation"):
            case "range":
                key(operation.range.key)
            case "put":
                key(operation.put.key)
                puts.append(operation.put.key)
            case "delete":
                key(operation.delete.key)
                deletes.append((operation.delete.key, operation.delete.range_end))
            case _:
                raise InvalidArgument("an operation of a transaction is empty")
    puts.sort()
    for one, other in pairwise(puts):
        if one == other:
            raise DuplicateKey(f"the transaction puts key {one!r} twice")
    for start, end in deletes:
        position = bisect_left(puts, start)
        if position < len(puts) and in_range(puts[position], start, end):
            raise DuplicateKey(f"the transaction puts and deletes key {puts[position]!r}")


def in_range(name: bytes, start: bytes, end: bytes) -> bool:
    """Whether a key lies in a range of etcd's convention."""
    if not end:
        return name == start
    return name >= start and (end == TO_THE_LAST or name < end)


def lease_grant(request: lease_pb2.LeaseGrantRequest) -> None:
    """A grant: a chosen id is positive, the TTL not too long."""
    if request.id < 0:
        raise InvalidArgument(f"lease id {request.id} is negative")
    if request.ttl > MAX_LEASE_TTL:
        raise LeaseTtlTooLarge(f"a TTL of {request.ttl} s is too large; {MAX_LEASE_TTL} s are allowed")


def granted_ttl(ttl: int) -> int:
    """What a grant that asks for `ttl` seconds gets."""
    return max(ttl, MIN_LEASE_TTL)

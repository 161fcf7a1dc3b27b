"""Transactions: nested, contradictory, too long."""

from __future__ import annotations

from random import Random

from nebuladb.pb.etcd import kv_pb2 as pb
from tests.etcd.diff import kv_ops, values
from tests.etcd.diff.calls import Call, Operation
from tests.etcd.diff.kv_ops import enum
from tests.etcd.diff.values import World, chance

DEPTH = 3


def compare(rng: Random, world: World) -> pb.Compare:
    """A compare; its union may be another than its target's, or none."""
    key, end = values.span(rng, 3)
    found = pb.Compare(key=key, range_end=end if chance(rng, 25) else b"", target=enum(rng, 5), result=enum(rng, 4))
    which = found.target if chance(rng, 90) else rng.randrange(6)
    match which:
        case 0:
            found.version = rng.choice((0, 1, 2, 3, -1))
        case 1:
            found.create_revision = 0 if chance(rng, 40) else values.edge(rng, world)
        case 2:
            found.mod_revision = 0 if chance(rng, 30) else values.edge(rng, world)
        case 3:
            found.value = values.value(rng)
        case 4:
            found.lease = values.lease(rng, world)
            named = found.lease in (0, *values.LEASES, *values.ODD_LEASES)
            if not named and found.result in (pb.Compare.GREATER, pb.Compare.LESS):
                found.result = pb.Compare.EQUAL  # which of two ids that a server chose is greater is chance
    return found


def operation(rng: Random, world: World, depth: int) -> pb.RequestOp:
    """One operation; an empty one now and then."""
    draw = rng.random() * 100
    if draw < 1.5:
        return pb.RequestOp()
    if draw < 25:
        return pb.RequestOp(request_range=kv_ops.range_request(rng, world))
    if draw < 62:
        return pb.RequestOp(request_put=kv_ops.put_request(rng, world))
    if draw < 80 or depth >= DEPTH:
        return pb.RequestOp(request_delete_range=kv_ops.delete_request(rng))
    return pb.RequestOp(request_txn=txn_request(rng, world, depth + 1))


def txn_request(rng: Random, world: World, depth: int = 1) -> pb.TxnRequest:
    """Few compares, few operations, so that many hold and many succeed; sometimes one key twice."""
    request = pb.TxnRequest(compare=[compare(rng, world) for _ in range(rng.choice((0, 0, 1, 1, 2)))])
    for branch in (request.success, request.failure):
        branch.extend(operation(rng, world, depth) for _ in range(rng.choice((0, 1, 1, 2, 3))))
        if branch and chance(rng, 6):
            branch.append(rng.choice(branch))
    return request


def do_txn(rng: Random, world: World) -> Operation:
    """A transaction, unless it is one that real etcd does not survive (etcd 64)."""
    request = txn_request(rng, world)
    if not kills_etcd(request):
        yield Call("KV/Txn", request)


def do_flat_txn(rng: Random, world: World) -> Operation:
    """One without another within it."""
    request = txn_request(rng, world, DEPTH)
    if not kills_etcd(request):
        yield Call("KV/Txn", request)


def do_read_txn(rng: Random, world: World) -> Operation:
    """One that only reads: it takes another way (etcd 23)."""
    request = pb.TxnRequest(compare=[compare(rng, world) for _ in range(rng.choice((0, 1)))])
    for branch in (request.success, request.failure):
        branch.extend(
            pb.RequestOp(request_range=kv_ops.range_request(rng, world)) for _ in range(rng.choice((0, 1, 2)))
        )
    yield Call("KV/Txn", request)


def do_long_txn(rng: Random, world: World) -> Operation:
    """At the bound on operations: in compares, in a branch, or over levels (etcd 17)."""
    number = rng.choice((127, 128, 129))
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"a", count_only=True))
    match rng.randrange(4):
        case 0:
            request = pb.TxnRequest(compare=[pb.Compare(key=b"a")] * number)
        case 1:
            request = pb.TxnRequest(failure=[read] * number, success=[read])
        case 2:
            inner = pb.TxnRequest(success=[read] * (number - 64))
            request = pb.TxnRequest(success=[read] * 63 + [pb.RequestOp(request_txn=inner)])
        case _:
            puts = [pb.RequestOp(request_put=pb.PutRequest(key=values.CROWD + b"%03d" % at)) for at in range(number)]
            request = pb.TxnRequest(success=puts)
    yield Call("KV/Txn", request)
    yield Call("KV/DeleteRange", pb.DeleteRangeRequest(key=values.CROWD, range_end=b"n0"))


def kills_etcd(request: pb.TxnRequest) -> bool:
    """Whether a branch deletes to the last key and anything in it leaves a value or a lease as it is (etcd 64)."""
    return any(
        any(_deletes_to_the_last(op) for op in branch) and any(_ignores(op) for op in branch)
        for branch in _branches(request)
    )


def _branches(request: pb.TxnRequest) -> list[list[pb.RequestOp]]:
    """Every branch on its own, with all that is beneath it."""
    return [_flat(branch) for branch in (request.success, request.failure)]


def _flat(branch: object) -> list[pb.RequestOp]:
    found: list[pb.RequestOp] = []
    for op in branch:  # type: ignore[attr-defined]
        found.append(op)
        if op.WhichOneof("request") == "request_txn":
            found += _flat(op.request_txn.success) + _flat(op.request_txn.failure)
    return found


def _deletes_to_the_last(op: pb.RequestOp) -> bool:
    return op.WhichOneof("request") == "request_delete_range" and op.request_delete_range.range_end == b"\0"


def _ignores(op: pb.RequestOp) -> bool:
    return op.WhichOneof("request") == "request_put" and (op.request_put.ignore_value or op.request_put.ignore_lease)

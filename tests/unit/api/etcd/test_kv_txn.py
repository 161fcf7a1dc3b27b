"""etcd's transactions: translated, refused in etcd's order, answered with inner headers."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from grpc import StatusCode

from nebuladb.pb.etcd import kv_pb2 as pb
from tests.unit.api.etcd.faced import Faced

INVALID = StatusCode.INVALID_ARGUMENT
Op = pb.RequestOp


def put(key: bytes, value: bytes = b"v", **fields: Any) -> Op:
    return Op(request_put=pb.PutRequest(key=key, value=value, **fields))


def delete(key: bytes, end: bytes = b"", **fields: Any) -> Op:
    return Op(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end, **fields))


def read(key: bytes, end: bytes = b"", **fields: Any) -> Op:
    return Op(request_range=pb.RangeRequest(key=key, range_end=end, **fields))


def nested(*success: Op, **fields: Any) -> Op:
    return Op(request_txn=pb.TxnRequest(success=success, **fields))


def headers(response: pb.TxnResponse) -> list[int]:
    """The revisions of the inner headers, in order; of nested ones 0, then what is in them."""
    found: list[int] = []
    for one in response.responses:
        inner = getattr(one, one.WhichOneof("response") or "")
        assert inner.HasField("header")
        assert (inner.header.cluster_id, inner.header.member_id, inner.header.raft_term) == (0, 0, 0)
        found.append(inner.header.revision)
        if isinstance(inner, pb.TxnResponse):
            found += headers(inner)
    return found


async def test_a_transaction_has_one_revision_and_its_operations_tell_when_it_came(etcd: Faced) -> None:
    """etcd 16, 24."""
    await etcd.set(b"a")
    request = pb.TxnRequest(
        success=[
            delete(b"none"),
            read(b"a"),
            nested(read(b"a", keys_only=True), put(b"b", prev_kv=True)),
            read(b"\0", b"\0", limit=1),
            delete(b"a", prev_kv=True),
        ]
    )
    response = await etcd.call("Txn", request)
    assert (response.succeeded, response.header.revision, response.header.cluster_id) == (True, 3, 7)
    assert headers(response) == [2, 2, 0, 2, 3, 3, 3]
    inner = response.responses[2].response_txn
    assert (inner.succeeded, inner.responses[0].response_range.kvs[0].value) == (True, b"")
    ranged = response.responses[3].response_range
    assert ([kv.key for kv in ranged.kvs], ranged.count, ranged.more) == ([b"a"], 2, True)
    assert response.responses[4].response_delete_range.prev_kvs[0].key == b"a"


async def test_what_changes_nothing_steps_no_revision_and_what_only_reads_needs_no_log(etcd: Faced) -> None:
    """etcd 16, 23."""
    await etcd.set(b"a")
    nothing = await etcd.call("Txn", pb.TxnRequest(success=[delete(b"none"), nested(delete(b"none"))]))
    assert (nothing.header.revision, headers(nothing)) == (2, [2, 0, 2])
    index = etcd.pump.store(3).index
    for request in (
        pb.TxnRequest(),
        pb.TxnRequest(compare=[pb.Compare(key=b"a", version=1)], success=[read(b"a"), nested(read(b"a", b"\0"))]),
        pb.TxnRequest(success=[read(b"a", serializable=True)]),
    ):
        response = await etcd.call("Txn", request)
        assert (response.succeeded, response.header.revision) == (True, 2)
    assert etcd.pump.store(3).index == index


async def test_compares(etcd: Faced) -> None:
    """etcd 19 to 21, and what etcd makes of targets and results that it doesn't know."""
    await etcd.set(b"a", b"1")
    await etcd.set(b"b", b"2")
    compare = pb.Compare
    for holds, one in (
        (True, compare(key=b"a", target=compare.VALUE, value=b"1")),
        (False, compare(key=b"none", target=compare.VALUE, result=compare.NOT_EQUAL, value=b"1")),
        (True, compare(key=b"none", target=compare.CREATE, create_revision=0)),
        (True, compare(key=b"none", target=compare.MOD)),
        (True, compare(key=b"a", target=compare.MOD, result=compare.GREATER, create_revision=9)),
        (True, compare(key=b"a", range_end=b"c", target=compare.VERSION, version=1)),
        (False, compare(key=b"a", range_end=b"c", target=compare.VALUE, value=b"1")),
        (False, compare(key=b"x", range_end=b"z", target=compare.VALUE, result=compare.LESS, value=b"z")),
        (True, compare(key=b"a", target=compare.LEASE, lease=0)),
        (True, compare(key=b"a", result=9, version=7)),  # type: ignore[arg-type]
        (True, compare(key=b"a", target=compare.VALUE, result=9)),  # type: ignore[arg-type]
        (False, compare(key=b"none", target=compare.VALUE, result=9)),  # type: ignore[arg-type]
        (True, compare(key=b"a", target=8, version=7)),  # type: ignore[arg-type]
        (False, compare(key=b"a", target=8, result=compare.GREATER)),  # type: ignore[arg-type]
        (True, compare(key=b"a", target=8, result=9)),  # type: ignore[arg-type]
    ):
        assert (await etcd.call("Txn", pb.TxnRequest(compare=[one]))).succeeded is holds, one


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.TxnRequest(success=[Op()]), "key not found"),
        (pb.TxnRequest(success=[put(b"a")], failure=[Op()]), "key not found"),
        (pb.TxnRequest(success=[Op()], failure=[put(b"a")] * 129), "too many operations in txn request"),
        (pb.TxnRequest(success=[read(b"a")] * 63 + [nested(*[read(b"a")] * 65)]), "too many operations in txn request"),
        (pb.TxnRequest(success=[put(b"a"), put(b"a"), Op()]), "key not found"),
        (pb.TxnRequest(success=[put(b"a"), put(b"a")]), "duplicate key given in txn request"),
        (pb.TxnRequest(failure=[put(b"a"), delete(b"a", b"b")]), "duplicate key given in txn request"),
        (pb.TxnRequest(success=[nested(delete(b"a")), nested(put(b"a"))]), "duplicate key given in txn request"),
        (pb.TxnRequest(success=[put(b"a", ignore_value=True)]), "value is provided"),
        (pb.TxnRequest(success=[put(b"a", lease=3, ignore_lease=True)]), "lease is provided"),
        (pb.TxnRequest(success=[put(b"a", b"", ignore_value=True, lease=9)]), "key not found"),
        (pb.TxnRequest(success=[delete(b"a", b"\0"), put(b"k", b"", ignore_value=True)]), "key not found"),
    ],
)
async def test_what_is_refused_changes_nothing(etcd: Faced, request_: pb.TxnRequest, text: str) -> None:
    """etcd 17, 18, 24, 64."""
    await etcd.set(b"k")
    assert await etcd.refused("Txn", request_) == (INVALID, f"etcdserver: {text}")
    assert (await etcd.range(b"\0", b"\0")).header.revision == 2


async def test_a_bad_revision_fails_the_whole(etcd: Faced) -> None:
    """etcd 22 and 65."""
    await etcd.set(b"k")
    future = (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
    for others in ([], [put(b"k", b"new")], [nested(put(b"k", b"new"))]):
        assert await etcd.refused("Txn", pb.TxnRequest(success=[*others, read(b"k", revision=3)])) == future
    assert (await etcd.range(b"k")).kvs[0].value == b"v"


@pytest.mark.parametrize("tag", [b"\x0a", b"\x12", b"\x1a"])
@pytest.mark.parametrize("depth", [0, 1])
async def test_what_has_far_too_many_operations_is_refused_before_they_are_looked_at(
    etcd: Faced, tag: bytes, depth: int
) -> None:
    """A message of 2 MiB may have a million, of two bytes each; to make an object of each has held a node for 15 s."""
    request = pb.TxnRequest.FromString((tag + b"\0") * 100_000)
    if depth:
        request = pb.TxnRequest(success=[Op(request_txn=request)])
    tracemalloc.start()
    try:
        assert await etcd.refused("Txn", request) == (INVALID, "etcdserver: too many operations in txn request")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000

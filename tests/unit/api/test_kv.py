"""nebula.v1.KV: what it shares with etcd's face beyond keys and values."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.errors import Reason
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.command import Kind
from nebuladb.kv.limits import MAX_CONTROL_BYTES, MAX_REQUEST_BYTES
from nebuladb.node.disk import grows
from nebuladb.node.keyspaces import MAX_CLUSTER_SHARDS
from nebuladb.pb.nebula.v1 import cluster_pb2, common_pb2, keyspace_pb2
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from tests.unit.api.served import Served, error_detail
from tests.unit.node.lone import SECONDS

Op = pb.Operation


async def ask(served: Served, method: str, request: Any, response: Any) -> Any:
    call = served.channel.unary_unary(f"/nebula.v1.KV/{method}", type(request).SerializeToString, response.FromString)
    return await call(request, timeout=SECONDS)


def nested(*success: Op, compare: pb.Compare | None = None) -> Op:
    return Op(txn=pb.NestedTxn(compare=[compare] if compare else [], success=success))


async def test_a_nested_transaction_is_answered_as_one(served: Served) -> None:
    before = served.pump.store(DEFAULT_GROUP).revision
    keeps = Op(put=pb.TxnPut(key=b"k", ignore_value=True, prev_kv=True))
    reads = Op(range=pb.RangeRequest(key=b"\0", range_end=b"\0", order=pb.RangeRequest.DESCEND, limit=1))
    request = pb.TxnRequest(success=[Op(put=pb.TxnPut(key=b"a")), nested(keeps, reads)])
    answer = await ask(served, "Txn", request, pb.TxnResponse)
    assert answer.header.revision == before + 1
    inner = answer.results[1].txn
    assert (inner.succeeded, inner.results[0].put.prev_kv.value) == (True, b"v")
    ranged = inner.results[1].range
    assert ([kv.key for kv in ranged.kvs], ranged.count, ranged.more) == ([b"k"], 2, True)


async def test_what_only_reads_takes_no_entry(served: Served) -> None:
    await served.put()
    store = served.pump.store(DEFAULT_GROUP)
    index = store.index
    for serializable in (False, True):
        request = pb.TxnRequest(
            compare=[pb.Compare(key=b"k", target=pb.Compare.VALUE, value=b"v")],
            success=[nested(Op(range=pb.RangeRequest(key=b"k")))],
            serializable=serializable,
        )
        answer = await ask(served, "Txn", request, pb.TxnResponse)
        assert (answer.succeeded, answer.header.revision) == (True, store.revision)
        assert answer.results[0].txn.results[0].range.kvs[0].value == b"v"
    assert served.pump.store(DEFAULT_GROUP).index == index
    writes = pb.TxnRequest(success=[nested(Op(put=pb.TxnPut(key=b"k")))], serializable=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, "Txn", writes, pb.TxnResponse)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_physical_compaction_is_answered_when_its_work_is_done(served: Served) -> None:
    for _ in range(5):
        await served.put()
    store = served.pump.store(DEFAULT_GROUP)
    revision = store.revision
    held = store.pin(revision - 1)
    physical = asyncio.ensure_future(
        ask(served, "Compact", pb.CompactRequest(revision=revision, physical=True), pb.CompactResponse)
    )
    await served.until(lambda: len(served.pump.reclaims._waiting) == 1)
    assert store.floor == revision
    assert not store.reclaimed(revision)
    assert not physical.done()
    held.close()
    await asyncio.wait_for(physical, SECONDS)
    assert store.reclaimed(revision)


async def test_a_physical_compaction_that_takes_too_long_says_so(served: Served) -> None:
    await served.put()
    store = served.pump.store(DEFAULT_GROUP)
    held = store.pin(store.revision - 1)
    call = served.channel.unary_unary(
        "/nebula.v1.KV/Compact", pb.CompactRequest.SerializeToString, pb.CompactResponse.FromString
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(pb.CompactRequest(revision=store.revision, physical=True), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    held.close()
    assert store.floor == store.revision, "it is done"
    assert error_detail(caught.value).outcome == common_pb2.UNKNOWN


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("KV/Compact", MAX_CONTROL_BYTES),
        ("Lease/Revoke", MAX_CONTROL_BYTES),
        ("Lease/KeepAlive", MAX_CONTROL_BYTES),
        ("Lease/Grant", MAX_REQUEST_BYTES),
        ("Session/Open", MAX_REQUEST_BYTES),
        ("Session/Close", MAX_REQUEST_BYTES),
    ],
)
async def test_what_is_too_large_stands_in_no_log(served: Served, method: str, most: int) -> None:
    """Fields that nobody knows are a part of a request. Control's commands are held back by no bound on bytes."""
    unknown, index = b"\xfa\x01", served.pump.store(DEFAULT_GROUP).index
    size = most
    raw = b"\x10\x05" + unknown + bytes((size & 127 | 128, size >> 7 & 127 | 128, size >> 14)) + bytes(size)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary(f"/nebula.v1.{method}", bytes, bytes)(raw, timeout=SECONDS)
    assert error_detail(caught.value).reason == Reason.REQUEST_TOO_LARGE
    assert served.pump.store(DEFAULT_GROUP).index == index


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("KV/Scan", pb.ScanRequest(key=b"k", revisions=[pb.ShardRevision()] * (MAX_CLUSTER_SHARDS + 1))),
        ("KV/Watch", pb.WatchRequest(key=b"k", start_revisions=[pb.ShardRevision()] * (MAX_CLUSTER_SHARDS + 1))),
        (
            "Cluster/Snapshot",
            cluster_pb2.SnapshotRequest(since=[cluster_pb2.ShardPoint()] * (MAX_CLUSTER_SHARDS + 1)),
        ),
        (
            "Keyspace/Create",
            keyspace_pb2.KeyspaceCreateRequest(name="x", partitioning=keyspace_pb2.RANGE, split_keys=[b""] * 1_024),
        ),
    ],
)
async def test_what_names_more_shards_than_there_can_be_is_refused_by_their_number(
    served: Served, method: str, request_: Any
) -> None:
    """A message may have two million of them, of two bytes each: to look at all takes half a second."""
    channel, path, raw = served.channel, f"/nebula.v1.{method}", request_.SerializeToString()
    create = method == "Keyspace/Create"
    call = channel.unary_unary(path)(raw, timeout=SECONDS) if create else channel.unary_stream(path)(raw).read()
    with pytest.raises(grpc.aio.AioRpcError, match=r"shards, not 1025|names 8193 shards") as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_nested_put_needs_space() -> None:
    put, delete = Op(put=pb.TxnPut(key=b"k")), Op(delete=pb.TxnDelete(key=b"k"))
    for operation, needs in ((put, True), (delete, False), (nested(delete), False), (nested(nested(put)), True)):
        assert grows(Kind.TXN, pb.TxnRequest(failure=[operation]).SerializeToString()) is needs

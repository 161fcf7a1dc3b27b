"""etcdserverpb.KV on one node: the numbered lines are those of what an etcd server must get right."""

from __future__ import annotations

from grpc import StatusCode

from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.etcd.mvcc_pb2 import KeyValue
from tests.unit.api.etcd.faced import Faced

EMPTY_KEY = (StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")


async def test_a_put_is_read_with_its_header(etcd: Faced) -> None:
    """etcd 58."""
    put = await etcd.set(b"k", b"v")
    assert put.header.revision == 2
    found = await etcd.range(b"k")
    assert found.header == put.header
    assert (put.header.cluster_id, put.header.member_id) == (7, 11)
    assert put.header.raft_term > 0
    assert list(found.kvs) == [KeyValue(key=b"k", create_revision=2, mod_revision=2, version=1, value=b"v")]
    assert (found.count, found.more) == (1, False)


async def test_an_empty_key_is_refused_everywhere(etcd: Faced) -> None:
    """etcd 1."""
    assert await etcd.refused("Range", pb.RangeRequest()) == EMPTY_KEY
    assert await etcd.refused("Put", pb.PutRequest(value=b"v")) == EMPTY_KEY
    assert await etcd.refused("DeleteRange", pb.DeleteRangeRequest(range_end=b"\0")) == EMPTY_KEY

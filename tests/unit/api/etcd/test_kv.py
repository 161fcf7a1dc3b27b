"""etcdserverpb.KV on one node: the numbered lines are those of what an etcd server must get right."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode

from nebuladb.api.etcd.requests import MAX_RECEIVED_BYTES, lone_key, plain_put
from nebuladb.api.etcd.wire import key_value, varint
from nebuladb.kv import answer
from nebuladb.kv.limits import MAX_REQUEST_BYTES
from nebuladb.node.meta import ETCD
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.etcd import lease_pb2
from nebuladb.pb.etcd.mvcc_pb2 import KeyValue
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.etcd.faced import Faced

INVALID = StatusCode.INVALID_ARGUMENT
EMPTY_KEY = (INVALID, "etcdserver: key is not provided")
NO_KEY = (INVALID, "etcdserver: key not found")
NO_LEASE = (StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
COMPACTED = (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")


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
    assert await etcd.range(b"k", serializable=True) == found
    missing = await etcd.range(b"none")
    assert (list(missing.kvs), missing.count, missing.header) == ([], 0, put.header)


async def test_an_empty_key_is_refused_everywhere(etcd: Faced) -> None:
    """etcd 1."""
    assert await etcd.refused("Range", pb.RangeRequest()) == EMPTY_KEY
    assert await etcd.refused("Put", pb.PutRequest(value=b"v")) == EMPTY_KEY
    assert await etcd.refused("DeleteRange", pb.DeleteRangeRequest(range_end=b"\0")) == EMPTY_KEY
    assert await etcd.refused("Txn", pb.TxnRequest(compare=[pb.Compare()])) == EMPTY_KEY


async def test_what_a_put_keeps(etcd: Faced) -> None:
    """etcd 11, 12, 13."""
    for fields, text in (
        ({"ignore_value": True, "value": b"v"}, "value is provided"),
        ({"ignore_lease": True, "lease": 7}, "lease is provided"),
        ({"ignore_lease": True, "lease": 7, "ignore_value": True, "value": b"v"}, "value is provided"),
        ({"ignore_value": True}, "key not found"),
        ({"ignore_lease": True}, "key not found"),
    ):
        assert await etcd.refused("Put", pb.PutRequest(key=b"k", **fields)) == (INVALID, f"etcdserver: {text}")
    missing = pb.PutRequest(key=b"k", lease=7, ignore_value=True)
    assert await etcd.refused("Put", missing) == NO_LEASE
    grant = etcd.channel.unary_unary(
        "/etcdserverpb.Lease/LeaseGrant",
        lease_pb2.LeaseGrantRequest.SerializeToString,
        lease_pb2.LeaseGrantResponse.FromString,
    )
    await grant(lease_pb2.LeaseGrantRequest(ID=7, TTL=1000))
    assert not (await etcd.set(b"k", b"1", lease=7, prev_kv=True)).HasField("prev_kv")
    second = await etcd.set(b"k", b"2", ignore_lease=True, prev_kv=True)
    assert (second.prev_kv.value, second.prev_kv.lease) == (b"1", 7)
    assert (await etcd.range(b"k")).kvs[0].lease == 7
    await etcd.set(b"k", b"", ignore_value=True)
    [kv] = (await etcd.range(b"k")).kvs
    assert (kv.value, kv.lease, kv.version) == (b"2", 0, 3)


async def test_revisions(etcd: Faced) -> None:
    """etcd 2, 3, 25."""
    for value in (b"1", b"2", b"3"):
        await etcd.set(b"k", value)
    old = await etcd.range(b"k", revision=3)
    assert (old.kvs[0].value, old.header.revision) == (b"2", 4)
    assert (await etcd.range(b"k", revision=-5)).kvs[0].value == b"3"
    assert await etcd.refused("Range", pb.RangeRequest(key=b"k", revision=5)) == FUTURE
    assert await etcd.refused("Compact", pb.CompactionRequest(revision=5)) == FUTURE
    compacted = await etcd.call("Compact", pb.CompactionRequest(revision=3, physical=True))
    assert compacted.header.revision == 4
    assert etcd.pump.store(3).reclaimed(3)
    assert await etcd.refused("Compact", pb.CompactionRequest(revision=3)) == COMPACTED
    assert (await etcd.range(b"k", revision=3)).kvs[0].value == b"2"
    assert await etcd.refused("Range", pb.RangeRequest(key=b"k", revision=2)) == COMPACTED


async def test_deletions(etcd: Faced) -> None:
    """etcd 1, 14."""
    for key in (b"a", b"b", b"c"):
        await etcd.set(key)
    none = await etcd.call("DeleteRange", pb.DeleteRangeRequest(key=b"x", prev_kv=True))
    assert (none.deleted, none.header.revision) == (0, 4)
    two = await etcd.call("DeleteRange", pb.DeleteRangeRequest(key=b"b", range_end=b"\0", prev_kv=True))
    assert (two.deleted, [kv.key for kv in two.prev_kvs], two.header.revision) == (2, [b"b", b"c"], 5)
    assert (await etcd.range(b"\0", b"\0")).count == 1


async def test_what_is_too_large(etcd: Faced) -> None:
    """etcd 26; the size that 3.5.16 takes is 18 bytes less, which its log adds."""
    most = MAX_REQUEST_BYTES - 18 - len(pb.PutRequest(key=b"k", value=b"x" * 2**20).SerializeToString()) + 2**20
    await etcd.set(b"k", b"x" * most)
    refused = (INVALID, "etcdserver: request is too large")
    assert await etcd.refused("Put", pb.PutRequest(key=b"k", value=b"x" * (most + 1))) == refused
    operation = pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"x" * most))
    assert await etcd.refused("Txn", pb.TxnRequest(success=[operation])) == refused
    assert await etcd.refused("Put", pb.PutRequest(value=b"x" * (most + 9))) == EMPTY_KEY
    raw = pb.PutRequest(key=b"k", value=b"x" * MAX_RECEIVED_BYTES).SerializeToString()
    text = f"grpc: received message larger than max ({len(raw)} vs. {MAX_RECEIVED_BYTES})"
    assert await etcd.refused("Put", raw) == (StatusCode.RESOURCE_EXHAUSTED, text)


@pytest.mark.parametrize("method", ["Range", "Put", "DeleteRange", "Txn", "Compact"])
async def test_what_is_no_message(etcd: Faced, method: str) -> None:
    code, text = await etcd.refused(method, b"\x0a\x05ab")
    assert (code, text) == (StatusCode.INTERNAL, "grpc: error unmarshalling request: unexpected EOF")


async def test_a_bad_order_is_refused(etcd: Faced) -> None:
    """etcd 4."""
    bad = (INVALID, "etcdserver: invalid sort option")
    for fields in ({"sort_order": 3}, {"sort_target": 5}, {"sort_order": -1}):
        request = pb.RangeRequest(key=b"k", **fields)  # type: ignore[arg-type]
        assert await etcd.refused("Range", request) == bad
        assert await etcd.refused("Txn", pb.TxnRequest(success=[pb.RequestOp(request_range=request)])) == bad


# --- bytes that are read and written by hand


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 70_000])
@pytest.mark.parametrize("key", [b"k", b"\x0a\x12", b"x" * 127, b"x" * 128, b""])
def test_the_body_of_a_plain_put_is_the_same_message(key: bytes, size: int) -> None:
    raw = pb.PutRequest(key=key, value=b"\x12" * size).SerializeToString()
    body = plain_put(raw)
    if not 0 < len(key) < 128 or not size:
        assert body is None
    else:
        assert body == kv_pb2.PutRequest(key=key, value=b"\x12" * size).SerializeToString()


@pytest.mark.parametrize(
    "fields", [{"lease": 1}, {"prev_kv": True}, {"ignore_value": True}, {"ignore_lease": True}, {"lease": -1}]
)
def test_no_other_put_is_taken_for_a_plain_one(fields: Any) -> None:
    raw = pb.PutRequest(key=b"k", value=b"v", **fields).SerializeToString()
    assert plain_put(raw) is None
    for end in range(len(raw)):
        cut = plain_put(raw[:end])
        assert cut is None or pb.PutRequest.FromString(raw[:end]) == pb.PutRequest(key=b"k", value=b"v")


def test_a_plain_put_cut_short_or_drawn_out_is_none() -> None:
    raw = pb.PutRequest(key=b"key", value=b"v" * 300).SerializeToString()
    assert plain_put(raw) is not None
    assert not any(plain_put(raw[:end]) for end in range(len(raw)))
    assert plain_put(raw + b"\x18\x01") is None
    assert plain_put(b"\x0a\x01k\x12\xff\xff\xff\xff\xff") is None


def test_a_lone_key_is_told_by_its_bytes() -> None:
    def told(**fields: Any) -> tuple[bytes, bool] | None:
        return lone_key(pb.RangeRequest(**fields).SerializeToString())

    assert told(key=b"k") == (b"k", False)
    assert told(key=b"k", serializable=True) == (b"k", True)
    assert told(key=b"x" * 127) == (b"x" * 127, False)
    for fields in (
        {"key": b""},
        {"key": b"x" * 128},
        {"key": b"k", "range_end": b""},
        {"key": b"k", "range_end": b"l"},
        {"key": b"k", "limit": 1},
        {"key": b"k", "keys_only": True},
        {"key": b"k", "serializable": True, "keys_only": True},
    ):
        plain = pb.RangeRequest(**fields) == pb.RangeRequest(key=b"k")
        assert told(**fields) == ((b"k", False) if plain else None)


@pytest.mark.parametrize(
    "number", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**21, 2**28 - 1, 2**28, 2**35, 2**63 - 1, 2**64 - 1]
)
def test_numbers_are_written_as_protobuf_writes_them(number: int) -> None:
    message = pb.PutResponse()
    message.header.cluster_id = number
    assert b"\x08" + varint(number) == (message.header.SerializeToString() or b"\x08\0")


def test_keys_are_written_as_protobuf_writes_them() -> None:
    for value, lease in ((b"", 0), (b"v" * 300, 2**62), (b"v", -2)):
        kv = answer.KeyValue(b"k", 2, 300, 5, lease, value)
        message = KeyValue(key=b"k", create_revision=2, mod_revision=300, version=5, value=value, lease=lease)
        assert key_value(kv) == message.SerializeToString()


async def test_what_is_on_the_disk_only_is_fetched(etcd: Faced) -> None:
    for value in (b"1", b"2"):
        await etcd.set(b"k", value)
    [shard] = etcd.backend.routing.shards(ETCD)
    looked: list[bytes] = []

    def cold(row: bytes) -> bool:
        looked.append(row)
        return True

    etcd.data.chill(cold)
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))
    for times in (1, 2):
        etcd.pump.store(shard.group)._cache.close()
        if times == 1:
            assert (await etcd.range(b"k")).kvs[0].value == b"2"
        else:
            answer = await etcd.call("Txn", pb.TxnRequest(compare=[pb.Compare(key=b"k", version=2)], success=[read]))
            assert answer.responses[0].response_range.kvs[0].value == b"2"
        assert any(row.endswith(b"Ck") for row in looked)
        looked.clear()
    assert etcd.pump.store(shard.group).borrowed == 0

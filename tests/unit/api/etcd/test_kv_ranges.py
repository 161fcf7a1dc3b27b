"""Ranges of etcd: filtered, sorted, cut, counted, large, streamed."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from nebuladb.api.etcd import ranges
from nebuladb.kv.limits import MAX_RESULT_ROWS
from nebuladb.node.meta import ETCD
from nebuladb.pb.etcd import kv_pb2 as pb
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

R = pb.RangeRequest


async def fill(etcd: Faced, count: int, value: bytes = b"v") -> None:
    """Keys k00000 and on, 125 at a revision."""
    for start in range(0, count, 125):
        puts = [pb.PutRequest(key=b"k%05d" % n, value=value) for n in range(start, min(start + 125, count))]
        await etcd.call("Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))


def pins(etcd: Faced) -> int:
    """Revisions that are kept for readers."""
    [shard] = etcd.backend.routing.shards(ETCD)
    return sum(not pin.closed for pin in etcd.pump.store(shard.group)._pins)


async def test_filters_then_order_then_limit(etcd: Faced) -> None:
    """etcd 4 to 8."""
    for n in range(5):
        await etcd.set(b"%c" % (97 + n), b"%d" % (9 - n))

    async def keys(**fields: Any) -> tuple[bytes, int, bool]:
        found = await etcd.range(b"a", b"z", **fields)
        assert fields.get("keys_only", False) is not any(kv.value for kv in found.kvs) or not found.kvs
        return b"".join(kv.key for kv in found.kvs), found.count, found.more

    assert await keys() == (b"abcde", 5, False)
    assert await keys(limit=2) == (b"ab", 5, True)
    assert await keys(limit=5) == (b"abcde", 5, False)
    assert await keys(sort_target=R.VALUE) == (b"edcba", 5, False)
    assert await keys(sort_target=R.VALUE, limit=2) == (b"cb", 5, True)  # etcd sorts what the limit took
    assert await keys(sort_target=R.VALUE, sort_order=R.ASCEND, limit=2, keys_only=True) == (b"ed", 5, True)
    assert await keys(sort_order=R.DESCEND, limit=3) == (b"edc", 5, True)
    assert await keys(min_mod_revision=3, max_mod_revision=4) == (b"bc", 5, False)
    assert await keys(min_create_revision=3, limit=2, sort_order=R.DESCEND) == (b"ed", 5, True)
    assert await keys(min_create_revision=4, limit=1) == (b"c", 5, True)
    assert await keys(count_only=True, limit=2) == (b"", 5, False)
    one = await etcd.range(b"c", keys_only=True, sort_target=R.VALUE, max_mod_revision=9)
    assert ([(kv.key, kv.value) for kv in one.kvs], one.count) == ([(b"c", b"")], 1)
    none = await etcd.range(b"c", max_mod_revision=1)
    assert (len(none.kvs), none.count) == (0, 1)


async def test_a_range_in_many_stretches_is_one_revision(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "STRETCH_ROWS", 7)
    await fill(etcd, 100)
    names = [b"k%05d" % n for n in range(100)]
    for fields, shown, more in (
        ({}, names, False),
        ({"limit": 30}, names[:30], True),
        ({"limit": 30, "sort_order": R.DESCEND}, names[:69:-1], True),
        ({"limit": 30, "max_mod_revision": 2}, names[:30], True),
        ({"limit": 30, "min_mod_revision": 3}, [], False),
        ({"count_only": True}, [], False),
        ({"limit": 100}, names, False),
    ):
        found = await etcd.range(b"k", b"l", **fields)
        assert ([kv.key for kv in found.kvs], found.count, found.more) == (shown, 100, more), fields
    assert pins(etcd) == 0


async def test_more_keys_than_a_command_may_answer_with(etcd: Faced) -> None:
    """A client's get_all gets all."""
    await fill(etcd, MAX_RESULT_ROWS + 500)
    everything = await etcd.range(b"\0", b"\0")
    assert (len(everything.kvs), everything.count, everything.more) == (
        MAX_RESULT_ROWS + 500,
        MAX_RESULT_ROWS + 500,
        False,
    )
    assert (await etcd.range(b"\0", b"\0", sort_order=R.DESCEND, limit=1)).kvs[0].key == everything.kvs[-1].key


async def test_a_range_has_a_bound_that_says_what_to_do(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """S23; and what is refused holds nothing."""
    monkeypatch.setattr(ranges, "STRETCH_ROWS", 7)
    await fill(etcd, 50, b"x" * 100)
    monkeypatch.setattr(ranges, "MAX_RANGE_BYTES", 2_000)
    for fields in ({}, {"sort_order": R.DESCEND}):
        code, text = await etcd.refused("Range", pb.RangeRequest(key=b"k", range_end=b"l", **fields))  # type: ignore[arg-type]
        assert (code, "limit" in text, "RangeStream" in text) == (StatusCode.RESOURCE_EXHAUSTED, True, True)
        assert pins(etcd) == 0
    assert (await etcd.range(b"k", b"l", limit=5)).count == 50
    assert len([kv for chunk in await etcd.stream(R(key=b"k", range_end=b"l")) for kv in chunk.kvs]) == 50
    monkeypatch.setattr(ranges, "MAX_RANGE_BYTES", 1 << 20)
    monkeypatch.setattr(ranges, "MAX_HELD_BYTES", 2_000)
    code, text = await etcd.refused("Range", pb.RangeRequest(key=b"k", range_end=b"l"))
    assert (code, text) == (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
    assert (await etcd.range(b"k", b"l", limit=5)).count == 50
    assert pins(etcd) == 0


async def test_a_stream_is_a_range_in_pieces(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd 15."""
    monkeypatch.setattr(ranges, "STRETCH_KEYS", 9)
    await fill(etcd, 40)
    for fields in ({}, {"limit": 20}, {"keys_only": True}, {"count_only": True}, {"limit": 40}, {"key": b"x"}):
        request = pb.RangeRequest(**{"key": b"k", "range_end": b"\0", **fields})  # type: ignore[arg-type]
        whole = await etcd.call("Range", request)
        chunks = await etcd.stream(request)
        merged = pb.RangeResponse()
        for chunk in chunks:
            merged.MergeFrom(chunk)
        assert merged == whole
        for chunk in chunks[:-1]:
            assert len(chunk.kvs) > 0
            assert (chunk.HasField("header"), chunk.more, chunk.count) == (False, False, 0)
        assert (len(chunks) > 1) is (len(whole.kvs) > 9)
    assert pins(etcd) == 0


async def test_a_stream_goes_in_the_order_of_keys_only(etcd: Faced) -> None:
    await fill(etcd, 3)
    for fields, text in (
        ({"sort_order": R.DESCEND}, "RangeStream does not support custom sort orders"),
        ({"sort_order": R.ASCEND, "sort_target": R.MOD}, "RangeStream does not support custom sort orders"),
        ({"min_mod_revision": 1}, "RangeStream does not support revision filters"),
        ({"sort_order": 7}, "etcdserver: invalid sort option"),
        ({"revision": 99}, "etcdserver: mvcc: required revision is a future revision"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await etcd.stream(pb.RangeRequest(key=b"k", range_end=b"l", **fields))
        assert caught.value.details() == text
    for natural in (R(sort_order=R.ASCEND), R(sort_target=R.VALUE)):
        natural.MergeFrom(R(key=b"k", range_end=b"l"))
        [chunk] = await etcd.stream(natural)
        assert [kv.key for kv in chunk.kvs] == [b"k00000", b"k00001", b"k00002"]


async def test_a_stream_shows_nothing_that_came_later_nor_minds_a_compaction(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S24: it is read at one revision, which is kept for it."""
    monkeypatch.setattr(ranges, "STRETCH_KEYS", 5)
    for n in range(30):
        await etcd.set(b"k%05d" % n, b"x" * 100_000)
    call = etcd.channel.unary_stream(
        "/etcdserverpb.KV/RangeStream", pb.RangeRequest.SerializeToString, pb.RangeStreamResponse.FromString
    )(pb.RangeRequest(key=b"k", range_end=b"l"), timeout=SECONDS)
    first = (await anext(aiter(call))).range_response
    assert len(first.kvs) == 5
    gone = await etcd.call("DeleteRange", pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    await etcd.call("Compact", pb.CompactionRequest(revision=gone.header.revision))
    rest = [chunk.range_response async for chunk in call]
    assert 5 + sum(len(chunk.kvs) for chunk in rest) == 30
    assert (rest[-1].count, rest[-1].header.revision) == (30, gone.header.revision - 1)
    assert pins(etcd) == 0


async def test_a_stream_that_nobody_takes_keeps_its_revision_for_a_while(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that it goes on from where it was, unless a compaction came: then it says so, and shows no gap."""
    monkeypatch.setattr(ranges, "STRETCH_KEYS", 5)
    monkeypatch.setattr(ranges, "HOLD_SECONDS", 0.01)
    for n in range(30):
        await etcd.set(b"k%05d" % n, b"x" * 100_000)
    stream = etcd.channel.unary_stream(
        "/etcdserverpb.KV/RangeStream", pb.RangeRequest.SerializeToString, pb.RangeStreamResponse.FromString
    )
    calls = [stream(pb.RangeRequest(key=b"k", range_end=b"l"), timeout=SECONDS) for _ in range(2)]
    for call in calls:
        await anext(aiter(call))
    await etcd.until(lambda: pins(etcd) == 0)
    await etcd.call("DeleteRange", pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    later = [len(chunk.range_response.kvs) async for chunk in calls[0]]
    assert sum(later) == 25
    revision = (await etcd.range(b"k")).header.revision
    await etcd.call("Compact", pb.CompactionRequest(revision=revision))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [chunk async for chunk in calls[1]]
    assert caught.value.details() == "etcdserver: mvcc: required revision has been compacted"

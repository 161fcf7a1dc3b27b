"""Many keys at once: spread over shards, cut into requests, and honest about what was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nebuladb.client.many import MAX_OPERATIONS, Many
from nebuladb.client.types import PutResult, TxnResult
from nebuladb.errors import NebulaError, ResultTooLarge, TooManyRequests, UnknownOutcome
from nebuladb.pb.nebula.v1 import keyspace_pb2, kv_pb2
from nebuladb.shard import slot_of

HALF = 32_768


class TwoShards:
    """A transport to a hash keyspace of two shards that answers reads of `data`."""

    def __init__(self, data: dict[bytes, bytes]) -> None:
        self.data = data
        self.requests: list[kv_pb2.TxnRequest] = []
        self.most = 3 << 20
        """Bytes of values in an answer."""

    async def call(self, method: Any, request: Any) -> Any:
        if isinstance(request, keyspace_pb2.KeyspaceDescribeRequest):
            info = keyspace_pb2.KeyspaceInfo(name=request.name, partitioning=keyspace_pb2.HASH)
            info.shards.add(group=4, start_slot=0, end_slot=HALF)
            info.shards.add(group=5, start_slot=HALF, end_slot=2 * HALF)
            return keyspace_pb2.KeyspaceDescribeResponse(keyspace=info)
        self.requests.append(request)
        if sum(len(self.data.get(operation.range.key, b"")) for operation in request.success) > self.most:
            raise ResultTooLarge
        response = kv_pb2.TxnResponse(succeeded=True)
        for operation in request.success:
            result = response.results.add()
            result.range.SetInParent()
            key = operation.range.key
            if key in self.data:
                result.range.kvs.add(key=key, value=self.data[key], version=1)
        return response


def shard(key: bytes) -> int:
    return 4 if slot_of(key) < HALF else 5


def many(transport: TwoShards, commit: Callable[[kv_pb2.TxnRequest], TxnResult] | None = None) -> Many:
    async def send(request: kv_pb2.TxnRequest) -> TxnResult:
        assert commit is not None
        return commit(request)

    return Many(transport, "spread", send)  # type: ignore[arg-type]  # all that it uses is `call`


async def test_get_many_finds_each_key_in_its_shard() -> None:
    data = {b"key %d" % number: b"value %d" % number for number in range(1_000)}
    transport = TwoShards(data)
    asked = [*data, b"missing"]
    found = await many(transport).get(asked)
    assert {key: kv.value if kv else None for key, kv in found.items()} == {**data, b"missing": None}
    for request in transport.requests:
        keys = [operation.range.key for operation in request.success]
        assert len(keys) <= MAX_OPERATIONS
        assert len({shard(key) for key in keys}) == 1


async def test_get_many_asks_again_in_halves_where_values_are_too_large_for_an_answer() -> None:
    data = {b"key %d" % number: bytes(30_000) for number in range(400)}
    transport = TwoShards(data)
    found = await many(transport).get(data)
    assert {key: kv.value for key, kv in found.items() if kv} == data
    transport.most = 29_999
    with pytest.raises(ResultTooLarge):
        await many(transport).get([b"key 1"])


async def test_a_batch_says_how_far_each_shard_is() -> None:
    revisions = {4: 10, 5: 20}

    def commit(request: kv_pb2.TxnRequest) -> TxnResult:
        first = request.success[0]
        group = shard(first.put.key or first.delete.key)
        revisions[group] += 1
        return TxnResult(revisions[group], True, (PutResult(revisions[group]),))  # noqa: FBT003  # as on the wire

    result = await many(TwoShards({}), commit).batch({b"%d" % number: b"" for number in range(500)}, [b"gone"])
    assert result.revisions == revisions


@pytest.mark.parametrize(("broken", "expected"), [({4, 5}, TooManyRequests), ({5}, UnknownOutcome)])
async def test_a_batch_failed_only_if_no_part_was_done(broken: set[int], expected: type[NebulaError]) -> None:
    def commit(request: kv_pb2.TxnRequest) -> TxnResult:
        if shard(request.success[0].put.key) in broken:
            raise TooManyRequests
        return TxnResult(2, True, ())  # noqa: FBT003  # as on the wire

    with pytest.raises(expected):
        await many(TwoShards({}), commit).batch({b"%d" % number: b"" for number in range(100)}, [])

"""Many keys at once: spread over shards, cut into requests, and honest about what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from nebuladb.client import methods
from nebuladb.client.many import MAX_IN_FLIGHT, MAX_OPERATIONS, Many
from nebuladb.errors import (
    DuplicateKey,
    NebulaError,
    NoLeader,
    Outcome,
    ResultTooLarge,
    TooManyRequests,
    UnknownOutcome,
    WrongShard,
)
from nebuladb.pb.nebula.v1 import keyspace_pb2, kv_pb2
from nebuladb.shard import slot_of

HALF = 32_768


class Shards:
    """A transport to a hash keyspace of two shards that answers reads of `data`, and says that it has written."""

    def __init__(self, data: Mapping[bytes, bytes] | None = None) -> None:
        self.data = data or {}
        self.starts = {4: 0, 5: HALF}
        """Shard → its first slot."""
        self.requests: list[kv_pb2.TxnRequest] = []
        self.described = 0
        self.most = 3 << 20
        """Bytes of values in an answer."""
        self.broken: dict[int, NebulaError] = {}
        """Shard → what it answers."""
        self.no_map: NebulaError | None = None
        """What whoever asks for the map is answered."""
        self.revisions: dict[int, int] = {}

    async def call(self, method: Any, request: Any) -> Any:
        if isinstance(request, keyspace_pb2.KeyspaceDescribeRequest):
            if self.no_map is not None:
                raise self.no_map
            self.described += 1
            info = keyspace_pb2.KeyspaceInfo(name=request.name, partitioning=keyspace_pb2.HASH)
            ends = [*list(self.starts.values())[1:], 2 * HALF]
            for (group, start), end in zip(self.starts.items(), ends, strict=True):
                info.shards.add(group=group, start_slot=start, end_slot=end)
            return keyspace_pb2.KeyspaceDescribeResponse(keyspace=info)
        self.requests.append(request)
        await asyncio.sleep(0)  # as if it were on its way: others begin
        keys = keys_of(request)
        groups = {self.group(key) for key in keys}
        if len(groups) > 1:
            raise WrongShard
        (group,) = groups
        if group in self.broken:
            raise self.broken[group]
        if sum(len(self.data.get(key, b"")) for key in keys) > self.most:
            raise ResultTooLarge
        writes = method == methods.TXN
        self.revisions[group] = self.revisions.get(group, 10 * group) + writes
        response = kv_pb2.TxnResponse(succeeded=True)
        response.header.group, response.header.revision = group, self.revisions[group]
        for key in () if writes else keys:
            result = response.results.add()
            result.range.SetInParent()
            if key in self.data:
                result.range.kvs.add(key=key, value=self.data[key], version=1)
        return response

    def group(self, key: bytes) -> int:
        return max(group for group, start in self.starts.items() if start <= slot_of(key))

    def check_home(self) -> None:
        """It has no loop."""

    def many(self) -> Many:
        return Many(self, "spread")  # type: ignore[arg-type]  # it uses `call` and `check_home`


def keys_of(request: kv_pb2.TxnRequest) -> list[bytes]:
    return [o.range.key or o.put.key or o.delete.key for o in request.success]


async def test_get_many_finds_each_key_in_its_shard() -> None:
    data = {b"key %d" % number: b"value %d" % number for number in range(1_000)}
    transport = Shards(data)
    asked = [*data, b"missing"]
    found = await transport.many().get(asked)
    assert {key: kv.value if kv else None for key, kv in found.items()} == {**data, b"missing": None}
    for request in transport.requests:
        keys = keys_of(request)
        assert len(keys) <= MAX_OPERATIONS
        assert len({transport.group(key) for key in keys}) == 1


async def test_get_many_asks_again_in_halves_where_values_are_too_large_for_an_answer() -> None:
    data = {b"key %d" % number: bytes(30_000) for number in range(400)}
    transport = Shards(data)
    found = await transport.many().get(data)
    assert {key: kv.value for key, kv in found.items() if kv} == data
    transport.most = 29_999
    with pytest.raises(ResultTooLarge):
        await transport.many().get([b"key 1"])


async def test_a_read_of_which_a_part_failed_raises_what_that_part_did() -> None:
    """It was called a write whose outcome is unknown."""
    transport = Shards()
    transport.broken[5] = NoLeader("shard 5 has no leader")
    with pytest.raises(NoLeader, match="shard 5"):
        await transport.many().get(b"%d" % number for number in range(100))


async def test_get_many_asks_again_by_a_fresh_map_where_the_keyspace_was_made_anew() -> None:
    data = {b"key %d" % number: b"value %d" % number for number in range(100)}
    transport = Shards(data)
    many = transport.many()
    await many.get(data)
    transport.starts = {8: 0, 9: HALF // 2, 10: HALF}
    found = await many.get(data)
    assert {key: kv.value for key, kv in found.items() if kv} == data
    assert transport.described == 2
    transport.broken[9] = WrongShard("of another keyspace")
    transport.requests.clear()
    with pytest.raises(WrongShard, match="of another keyspace"):  # once, no more
        await many.get(data)
    assert (transport.described, len(transport.requests)) == (3, 4)
    transport.requests.clear()
    with pytest.raises(WrongShard):  # by a map that is fresh already
        await transport.many().get(data)
    assert len(transport.requests) == 3


async def test_a_batch_says_how_far_each_shard_is() -> None:
    transport = Shards()
    result = await transport.many().batch({b"%d" % number: b"" for number in range(500)}, [b"gone"])
    assert result.revisions == transport.revisions
    assert result.revisions.keys() == {4, 5}


async def test_a_batch_names_the_shards_that_took_it_and_not_those_of_an_old_map() -> None:
    transport = Shards()
    many = transport.many()
    puts = {b"%d" % number: b"" for number in range(100)}
    await many.batch(puts, [])
    transport.starts = {10: 0, 11: HALF}
    for _ in range(2):
        result = await many.batch(puts, [])
        assert result.revisions == {group: transport.revisions[group] for group in (10, 11)}
    assert transport.described == 2


async def test_what_an_old_map_had_refused_of_a_batch_is_written_by_the_new_one() -> None:
    """The batch said that its outcome is unknown, with advice for transactions."""
    transport = Shards()
    many = transport.many()
    puts = {b"%d" % number: b"" for number in range(500)}
    await many.batch(puts, [])
    transport.starts = {8: 0, 9: HALF // 2, 10: HALF}
    transport.requests.clear()
    result = await many.batch(puts, [])
    assert result.revisions == {group: transport.revisions[group] for group in (8, 9, 10)}
    done = [keys for keys in map(keys_of, transport.requests) if len({transport.group(key) for key in keys}) == 1]
    assert sorted(key for keys in done for key in keys) == sorted(puts), "each is written once"
    transport.starts = {12: 0, 13: HALF // 4, 14: HALF}
    transport.broken[13] = UnknownOutcome("lost")
    with pytest.raises(UnknownOutcome, match=r"3 of 6 parts .*lost"):
        await many.batch(puts, [])
    transport.broken[13] = WrongShard("of another keyspace")
    with pytest.raises(UnknownOutcome, match="of another keyspace"):
        await many.batch(puts, [])


async def test_a_batch_of_which_a_part_was_done_is_not_failed_for_want_of_a_new_map() -> None:
    """It raised what the look for the map did: that it FAILED, and so that nothing was done."""
    transport = Shards()
    many = transport.many()
    puts = {b"%d" % number: b"" for number in range(100)}
    await many.batch(puts, [])
    transport.starts = {8: 0, 9: HALF // 2, 10: HALF}  # the part for the second half still lies in one shard
    transport.no_map = NoLeader("the meta group has no leader")
    before = dict(transport.revisions)
    with pytest.raises(UnknownOutcome, match="the meta group has no leader"):
        await many.batch(puts, [])
    assert transport.revisions.keys() - before.keys() == {10}
    transport.no_map = None
    await many.batch(puts, [])
    transport.starts = {20 + eighth: eighth * HALF // 4 for eighth in range(8)}  # no part lies in one shard
    transport.no_map = NoLeader("the meta group has no leader")
    with pytest.raises(NoLeader):
        await many.batch(puts, [])


async def test_a_batch_goes_in_halves_where_what_it_writes_over_is_too_large_for_a_transaction() -> None:
    data = {b"key %d" % number: bytes(30_000) for number in range(400)}
    transport = Shards(data)
    result = await transport.many().batch(dict.fromkeys(data, b""), [])
    assert result.revisions == transport.revisions
    transport.most = 29_999
    with pytest.raises(ResultTooLarge):
        await transport.many().batch({}, [b"key 1"])


async def test_a_batch_of_which_a_half_was_done_is_not_failed() -> None:
    """Its second half is refused: by now for another reason, and nobody may take the first for undone."""
    transport = Shards({b"%d" % number: bytes(30_000) for number in range(10)})
    transport.starts = {4: 0}
    transport.most = 150_000
    call, calls = transport.call, 0

    async def full_at_last(method: Any, request: Any) -> Any:
        nonlocal calls
        calls += isinstance(request, kv_pb2.TxnRequest)
        if calls == 3:
            raise TooManyRequests
        return await call(method, request)

    transport.call = full_at_last  # type: ignore[method-assign]
    with pytest.raises(NebulaError) as caught:
        await transport.many().batch({b"%d" % number: b"" for number in range(10)}, [])
    assert caught.value.outcome is Outcome.UNKNOWN
    assert calls == 3


@pytest.mark.parametrize("more", [0, MAX_OPERATIONS])
@pytest.mark.parametrize("deletes", [[b"twice"], [b"other", b"other"]])
async def test_a_batch_that_writes_a_key_twice_is_refused_before_anything_is_sent(
    more: int, deletes: list[bytes]
) -> None:
    """In two requests at once nothing would order them."""
    transport = Shards()
    puts = {b"twice": b"", **{b"%d" % number: b"" for number in range(more)}}
    with pytest.raises(DuplicateKey, match=deletes[0].decode()):
        await transport.many().batch(puts, iter(deletes))
    assert not transport.requests


@pytest.mark.parametrize(("broken", "expected"), [((4, 5), TooManyRequests), ((5,), UnknownOutcome)])
async def test_a_batch_failed_only_if_no_part_was_done(broken: tuple[int, ...], expected: type[NebulaError]) -> None:
    transport = Shards()
    transport.broken.update((group, TooManyRequests()) for group in broken)
    with pytest.raises(expected):
        await transport.many().batch({b"%d" % number: b"" for number in range(100)}, [])


async def test_no_part_is_begun_after_one_has_failed_for_good() -> None:
    """Each waited for the whole timeout, one crowd after the other, though the whole had failed already."""
    transport = Shards()
    many = transport.many()
    transport.broken.update({group: TooManyRequests(f"shard {group}") for group in (4, 5)})
    keys = [b"%d" % number for number in range(3 * MAX_IN_FLIGHT * MAX_OPERATIONS)]
    with pytest.raises(TooManyRequests):
        await many.get(keys)
    assert len(transport.requests) == MAX_IN_FLIGHT
    transport.requests.clear()
    with pytest.raises(TooManyRequests) as caught:
        await many.batch(dict.fromkeys(keys, b""), [])
    assert caught.value.outcome is Outcome.FAILED, "nothing was done, nor will be"
    assert len(transport.requests) == MAX_IN_FLIGHT
    del transport.broken[4]
    with pytest.raises(UnknownOutcome, match="shard 5"):
        await many.batch(dict.fromkeys(keys, b""), [])
    assert len(transport.requests) < 3 * MAX_IN_FLIGHT


async def test_what_an_old_map_had_refused_is_not_begun_after_another_part_has_failed() -> None:
    transport = Shards()
    many = transport.many()
    puts = {b"%d" % number: b"" for number in range(100)}
    await many.batch(puts, [])
    transport.starts = {8: 0, 9: HALF // 2, 10: HALF}
    transport.broken[10] = TooManyRequests("shard 10")
    transport.requests.clear()
    with pytest.raises(TooManyRequests, match="shard 10"):
        await many.batch(puts, [])
    assert len(transport.requests) == 2
    assert transport.described == 1

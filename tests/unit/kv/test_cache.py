"""One bound for the records of all shards."""

from __future__ import annotations

import gc

from nebuladb.kv.cache import ENTRY_OVERHEAD, RecordCache, RecordShare
from nebuladb.kv.rows import RECORD_HEAD_SIZE, Record, encode_record

SIZE = ENTRY_OVERHEAD + 3 + RECORD_HEAD_SIZE + 100


def record(main: int, *, version: int = 1, size: int = 100) -> bytes:
    value = bytes(size)
    return encode_record(
        Record(main, 0, main, version, 0, 0, 0, past_deleted=False, anchor_main=0, anchor_sub=0, stride=0, value=value)
    )


def fill(cache: RecordCache, count: int) -> None:
    for number in range(count):
        cache.put(b"%03d" % number, record(number + 1))


def take_over(cache: RecordCache, records: dict[bytes, bytes]) -> None:
    cache.update(records, {b"C" + key: data for key, data in records.items()}, b"C")


def held(cache: RecordCache, count: int) -> int:
    """How many are there, without the promotion that `get` does."""
    return sum(b"%03d" % number in generation for number in range(count) for generation in (cache.young, cache._old))


def test_a_hot_shard_gets_what_idle_ones_leave() -> None:
    share = RecordShare(100 * SIZE)
    caches = [RecordCache(share) for _ in range(10)]
    fill(caches[0], 90)
    assert held(caches[0], 90) == 90
    assert share.used == 90 * SIZE


def test_all_shards_together_keep_to_the_bound() -> None:
    share = RecordShare(100 * SIZE)
    caches = [RecordCache(share) for _ in range(10)]
    for cache in caches:
        fill(cache, 60)
        assert sum(held(each, 60) for each in caches) <= 100
        assert share.used <= share.limit + SIZE
    assert held(caches[0], 60) == 0
    take_over(caches[9], {b"000": record(99), b"059": record(100, version=0)})
    assert caches[9].get(b"000") == record(99)
    assert caches[9].get(b"059") is None


def test_an_overwrite_takes_no_more_room_than_its_value() -> None:
    share = RecordShare(100 * SIZE)
    cache = RecordCache(share)
    fill(cache, 30)
    for main in range(100, 200):
        take_over(cache, {b"%03d" % number: record(main) for number in range(30)})
    assert held(cache, 30) == 30
    assert share.used == 30 * SIZE
    take_over(cache, {b"000": record(300, size=700)})
    assert share.used == 30 * SIZE + 600


def test_the_collector_has_nothing_to_look_at() -> None:
    cache = RecordCache(RecordShare(100 * SIZE))
    fill(cache, 30)
    assert not any(gc.is_tracked(data) for data in cache.young.values())
    gc.collect()
    assert not gc.is_tracked(cache.young)


def test_what_is_read_outlives_a_turn() -> None:
    share = RecordShare(100 * SIZE)
    quiet, busy = RecordCache(share), RecordCache(share)
    quiet.put(b"hot", record(1))
    quiet.put(b"not", record(2))
    for number in range(500):
        busy.put(b"%03d" % number, record(number + 1))
        assert quiet.get(b"hot") == record(1)
    assert quiet.get(b"not") is None


def test_a_closed_cache_turns_no_more() -> None:
    share = RecordShare(10 * SIZE)
    gone, left = RecordCache(share), RecordCache(share)
    fill(gone, 3)
    gone.close()
    gone.close()
    fill(left, 20)
    assert gone.young == {}
    assert share.used <= share.limit + SIZE

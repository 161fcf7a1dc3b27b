"""Reads from memory only, of much more data than the cache holds, in every state that the cache may be in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine, RocksMemory

ROWS = 200_000


def key(number: int) -> bytes:
    return b"key/%08d" % number


def value(number: int) -> bytes:
    return Random(number).randbytes(40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cached") / "data"
    engine = RocksEngine.open_data(path)
    batch = Batch()
    for number in range(0, ROWS, 2):
        batch.put(key(number), value(number))
    engine.write(batch)
    engine.flush()
    # Tables of the first level keep index and filter in memory.
    engine._db.compact_range(None, None)
    engine.close()
    return path


@pytest.mark.parametrize("cache", [0, 64 << 10, 512 << 10, 64 << 20])
def test_what_it_says_is_true_whatever_part_of_index_filter_and_data_is_cached(path: Path, cache: int) -> None:
    engine = RocksEngine.open_data(path, memory=RocksMemory(cache, 64 << 20))
    random = Random(cache)
    told = untold = 0
    for _ in range(20):
        sample = [random.randrange(ROWS) for _ in range(500)]
        for number in sample:
            known, found = engine.get_cached(key(number))
            if known:
                told += 1
                assert found == (None if number % 2 else value(number))
            else:
                untold += 1
                assert found is None
        wanted = [None if number % 2 else value(number) for number in sample[:100]]
        assert engine.get_many([key(number) for number in sample[:100]]) == wanted
    assert untold > 0
    assert told > 0 or cache <= 64 << 10  # which has no room for a filter, an index and a row at once
    engine.close()


def test_a_database_that_was_there_has_the_given_cache_and_its_filters(path: Path) -> None:
    """rocksdict forgets both if the column family isn't named when it opens what exists."""
    memory = RocksMemory(3 << 20, 64 << 20)
    engine = RocksEngine.open_data(path, memory=memory)
    assert engine._db.property_int_value("rocksdb.block-cache-capacity") == 3 << 20
    for number in range(0, ROWS, 2_000):
        engine.get(key(number))
    held = memory.block_cache_used
    assert 0 < held <= 3 << 20
    # By their filters, keys that are not there need no other block than the filters' own.
    absent = [key(number) for number in range(1, ROWS, 2)]
    assert engine.get_many(absent) == [None] * len(absent)
    assert sum(engine.get_cached(name) == (True, None) for name in absent) > len(absent) * 0.9
    engine.close()


def test_an_empty_value_is_found_too(tmp_path: Path) -> None:
    """RocksDB's answer is the same for it as for a part of an index that isn't in memory, so it takes a fetch."""
    engine = RocksEngine.open_data(tmp_path / "data")
    batch = Batch()
    batch.put(b"empty", b"")
    engine.write(batch)
    assert engine.get_cached(b"empty") == (False, None)
    assert engine.get_many([b"empty"]) == [b""]
    engine.close()


def test_to_ask_for_what_is_not_there_costs_no_memory(path: Path) -> None:
    """rocksdict loses 32 bytes in each call of `key_may_exist(key, True)` that finds nothing."""
    in_use = used_by_malloc()
    if in_use is None:
        pytest.skip("the C library doesn't say what malloc has given out")
    engine = RocksEngine.open_data(path)
    absent = [key(number) for number in range(1, ROWS, 2)]
    for name in absent:
        engine.get(name)  # then the filters, which say so, are in memory
    before = in_use()
    for name in absent:
        assert engine.get_cached(name)[1] is None
    assert (in_use() - before) / len(absent) < 8
    engine.close()


def used_by_malloc() -> Callable[[], int] | None:
    """What asks glibc for the bytes that malloc has given out (mallinfo2's eighth number, uordblks)."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return None
    ask.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(f"f{n}", ctypes.c_size_t) for n in range(10)]})
    return lambda: int(ask().f7)

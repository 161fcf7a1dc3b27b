"""Rows from the disk, in threads; and clients' reads that wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from nebuladb.errors import Corruption, TooManyRequests, Unavailable
from nebuladb.kv.limits import Limits
from nebuladb.kv.loans import MOST_READ, Misses
from nebuladb.kv.store import Store
from nebuladb.node import looks as looks_module
from nebuladb.node.fetcher import ROWS_AT_ONCE, THREADS, Fetcher, Values
from nebuladb.node.looks import Looks
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import Log, fresh, put, reopen, run


class Disk(MemoryEngine):
    """Answers each key with itself, once `gate` is open; refuses b"bad"."""

    def __init__(self) -> None:
        super().__init__(wal=False)
        self.gate = threading.Event()
        self.parts: list[int] = []
        self.reading = threading.Semaphore(0)
        self.values: Callable[[bytes], bytes] = bytes

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.parts.append(len(keys))
        self.reading.release()
        self.gate.wait()
        if b"bad" in keys:
            raise Corruption("bad")
        return [self.values(key) for key in keys]


def collector() -> tuple[list[Values | BaseException], Callable[[Values | BaseException], None], threading.Semaphore]:
    got: list[Values | BaseException] = []
    ready = threading.Semaphore(0)

    def done(values: Values | BaseException) -> None:
        got.append(values)
        ready.release()

    return got, done, ready


def test_a_large_request_is_divided_and_comes_back_whole() -> None:
    disk = Disk()
    fetcher = Fetcher(disk)
    got, done, ready = collector()
    rows = [b"%d" % number for number in range(3 * ROWS_AT_ONCE + 5)]
    fetcher.fetch(rows, done)
    disk.gate.set()
    assert ready.acquire(timeout=30)
    fetcher.stop()
    assert got == [rows]
    assert sum(disk.parts) == len(rows)
    assert max(disk.parts) == MOST_READ


@pytest.mark.parametrize("small", [0, 6, 70])
def test_a_request_ends_with_the_rows_that_so_many_bytes_go_to(small: int) -> None:
    """All were read at once, however large: 64 of 1.5 MiB in each thread."""
    disk = Disk()
    disk.gate.set()
    disk.values = lambda key: bytes(1 << 20 if int(key) >= small else 1)
    fetcher = Fetcher(disk)
    rows = [b"%d" % number for number in range(5 * ROWS_AT_ONCE)]
    asked = 0
    while rows:
        got, done, ready = collector()
        fetcher.fetch(rows, done)
        assert ready.acquire(timeout=30)
        [values] = got
        assert isinstance(values, list)
        assert values == [disk.values(row) for row in rows[: len(values)]]
        assert 0 < len(values) <= small + 4 + MOST_READ
        rows = rows[len(values) :]
        asked += 1
    fetcher.stop()
    assert asked >= 5 * ROWS_AT_ONCE // (4 + MOST_READ) - small
    assert max(disk.parts) <= MOST_READ
    # What other threads had begun is read twice, and no more.
    assert sum(disk.parts) <= 5 * ROWS_AT_ONCE + asked * (THREADS - 1) * MOST_READ


def test_a_slow_read_does_not_hold_the_others_up() -> None:
    disk = Disk()
    fetcher = Fetcher(disk)
    for _ in range(THREADS + 3):
        fetcher.fetch([b"x"], lambda _: None)
    for _ in range(THREADS):
        assert disk.reading.acquire(timeout=30)
    assert fetcher.waiting == 3
    disk.gate.set()
    fetcher.stop()
    assert len(disk.parts) == THREADS + 3, "what was asked for is read before it stops"


def test_damage_in_one_part_fails_the_request_once() -> None:
    disk = Disk()
    disk.gate.set()
    fetcher = Fetcher(disk)
    got, done, ready = collector()
    fetcher.fetch([b"bad"] * (2 * ROWS_AT_ONCE) + [b"good"], done)
    assert ready.acquire(timeout=30)
    fetcher.fetch([b"good"], done)
    assert ready.acquire(timeout=30)
    fetcher.stop()
    assert [type(values) for values in got] == [Corruption, list]


def cold_store() -> tuple[Store, MemoryEngine]:
    store, engine = fresh()
    assert isinstance(engine, MemoryEngine)
    log = Log()
    run(store, log, put(b"k", b"1"))
    run(store, log, put(b"k", b"2"))
    store = reopen(engine, Limits(cache_bytes=0))
    engine.chill(lambda _: True)
    return store, engine


async def test_a_read_gets_row_after_row_and_gives_all_back() -> None:
    store, engine = cold_store()
    fetcher = Fetcher(engine)
    looks = Looks(fetcher, lambda _: store)
    with pytest.raises(Misses) as misses:
        store.get(b"k", 2)
    found = await asyncio.gather(*(looks.look(7, misses.value, lambda store: store.get(b"k", 2)) for _ in range(100)))
    assert {(whose, kv.value if kv else None) for whose, kv in found} == {(store, b"1")}
    assert (store.borrowed, looks.waiting) == (0, 0)
    await asyncio.to_thread(fetcher.stop)


async def test_reads_that_wait_are_bounded_and_end_with_their_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "MAX_LOOKS", 1)
    store, engine = cold_store()
    current = [store]
    fetcher = Fetcher(engine)
    looks = Looks(fetcher, lambda _: current[0])
    with pytest.raises(Misses) as misses:
        store.get(b"k")
    first = asyncio.create_task(looks.look(7, misses.value, lambda store: store.get(b"k")))
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests):
        await looks.look(7, misses.value, lambda store: store.get(b"k"))
    current[0] = reopen(engine)
    with pytest.raises(Unavailable):
        await first
    assert store.borrowed == 0
    await asyncio.to_thread(fetcher.stop)


async def test_damage_is_the_reader_s_error() -> None:
    store, engine = cold_store()
    engine.flip(store._keys.current + b"k", 3, detected=True)
    fetcher = Fetcher(engine)
    looks = Looks(fetcher, lambda _: store)
    with pytest.raises(Misses) as misses:
        store.get(b"k")
    with pytest.raises(Corruption):
        await looks.look(7, misses.value, lambda store: store.get(b"k"))
    assert store.borrowed == 0
    await asyncio.to_thread(fetcher.stop)

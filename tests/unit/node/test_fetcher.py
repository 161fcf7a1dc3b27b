"""Rows from the disk, in threads; and clients' reads that wait for them."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from nebuladb.errors import Corruption, TooManyRequests, Unavailable
from nebuladb.kv import check
from nebuladb.kv.answer import RangeResult
from nebuladb.kv.limits import Limits
from nebuladb.kv.loans import FETCH_BYTES, MOST_READ, Misses
from nebuladb.kv.store import Store
from nebuladb.kv.trail import Trail
from nebuladb.node import looks as looks_module
from nebuladb.node.fetcher import THREADS, Fetcher
from nebuladb.node.looks import LOOK_BYTES, Looks
from nebuladb.node.rows_asked import ROWS_AT_ONCE, Values
from nebuladb.pb.nebula.v1.kv_pb2 import Operation, RangeRequest, TxnRequest
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


MIB = 1 << 20


def large_store(count: int) -> tuple[Store, MemoryEngine]:
    """Keys of which none is in memory, with values of a MiB."""
    store, engine = fresh()
    assert isinstance(engine, MemoryEngine)
    log, value = Log(), bytes(MIB)
    run(store, log, *(put(b"k%03d" % number, value) for number in range(count)))
    store = reopen(engine, Limits(cache_bytes=0))
    engine.chill(lambda _: True)
    return store, engine


def together(keys: range) -> TxnRequest:
    """All of `keys` in one transaction, which says only which are there."""
    return TxnRequest(
        success=[Operation(range=RangeRequest(key=b"k%03d" % number, count_only=True)) for number in keys]
    )


@pytest.mark.parametrize("each", [1, 7, 50])
async def test_what_reads_hold_together_is_bounded_and_the_first_one_goes_on(each: int) -> None:
    """All held what they had got until they had all, those of 50 MiB more than the bound each alone."""
    store, engine = large_store(300)
    fetcher = Fetcher(engine)
    looks = Looks(fetcher, lambda _: store)
    most, done, loans = 0, [], store._source.loans
    supply = store.supply

    def supplied(rows: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        nonlocal most
        supply(rows, values)
        most = max(most, sum(map(len, filter(None, loans.rows.values()))), looks.size)

    store.supply = supplied  # type: ignore[method-assign]

    async def read(number: int) -> None:
        keys = range(number * each, (number + 1) * each)
        _, found = await looks.read(7, store, lambda store: store.read(check.txn(together(keys))))
        assert all(isinstance(result, RangeResult) and result.count == 1 for result in found.results)
        done.append(number)

    async with asyncio.timeout(60):
        await asyncio.gather(*map(read, range(300 // each)))
    await asyncio.to_thread(fetcher.stop)
    assert most <= LOOK_BYTES + FETCH_BYTES + max(each, MOST_READ) * 2 * MIB
    assert (store.borrowed, looks.waiting, looks.size) == (0, 0, 0)
    assert each < 50 or done == sorted(done), "as they came"


async def test_a_read_that_waits_holds_nothing_of_what_it_found_or_others_fetch() -> None:
    store, engine = large_store(60)
    log_row = store._keys.current + b"k059"
    engine.chill(lambda row: row == log_row)
    disk = Disk()
    fetcher = Fetcher(disk)
    looks = Looks(fetcher, lambda _: store)
    tracemalloc.start()
    try:
        reads = [
            asyncio.create_task(looks.read(7, store, lambda store: store.read(check.txn(together(range(60))))))
            for _ in range(10)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        assert tracemalloc.get_traced_memory()[0] < 10 * MIB
    finally:
        tracemalloc.stop()
    for task in reads:
        task.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    disk.gate.set()
    assert (store.borrowed, looks.waiting) == (0, 0)
    await asyncio.to_thread(fetcher.stop)


async def test_damage_is_nobody_else_s_error() -> None:
    """A fetch that failed failed for all who shared it, and their replicas got their data anew."""
    store, engine = large_store(10)
    engine.flip(store._keys.current + b"k003", 3, detected=True)
    fetcher = Fetcher(engine)
    looks = Looks(fetcher, lambda _: store)
    reads = (looks.read(7, store, lambda store, key=b"k%03d" % number: store.get(key)) for number in range(10))  # type: ignore[misc]
    found = await asyncio.gather(*reads, return_exceptions=True)
    assert [number for number, result in enumerate(found) if isinstance(result, Corruption)] == [3]
    assert sum(isinstance(result, tuple) for result in found) == 9
    await asyncio.to_thread(fetcher.stop)
    await asyncio.sleep(0)
    assert (store.borrowed, looks.waiting, looks.size) == (0, 0, 0)


async def test_a_read_of_an_old_revision_holds_one_version_at_a_time() -> None:
    """It held all that are above it, a GiB perhaps."""
    store, engine = fresh()
    assert isinstance(engine, MemoryEngine)
    log = Log()
    for number in range(60):
        run(store, log, put(b"k", b"%d" % number + bytes(MIB)))
    store = reopen(engine, Limits(cache_bytes=0))
    engine.chill(lambda _: True)
    fetcher = Fetcher(engine)
    looks = Looks(fetcher, lambda _: store)
    most, supply = 0, store.supply

    def supplied(rows: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        nonlocal most
        supply(rows, values)
        most = max(most, sum(map(len, filter(None, store._source.loans.rows.values()))), looks.size)

    store.supply = supplied  # type: ignore[method-assign]

    async def read(revision: int) -> None:
        trail = Trail()
        _, found = await looks.read(7, store, lambda store: store.get(b"k", revision, trail))
        assert found is not None
        assert found.value.startswith(b"%d\0" % (revision - 2))

    async with asyncio.timeout(60):
        await asyncio.gather(*map(read, range(2, 7)))
    await asyncio.to_thread(fetcher.stop)
    assert most <= LOOK_BYTES // 2
    assert (store.borrowed, looks.size) == (0, 0)

"""What `MemoryEngine` does beyond an engine's duty: crashes and faults."""

from __future__ import annotations

from random import Random

import pytest

from nebuladb.errors import Corruption, DiskFull, StoreError, WriteStalled
from nebuladb.storage.engine import Batch
from nebuladb.storage.memory import ALWAYS, Fault, MemoryEngine
from tests.unit.storage.harness import KeepAll, LoseAll


def write(engine: MemoryEngine, number: int) -> None:
    batch = Batch()
    batch.put(b"first %03d" % number, b"x")
    batch.delete_range(b"second", b"second %03d" % number)
    batch.put(b"second %03d" % number, b"x")
    batch.put(b"common", b"%d" % number)
    engine.write(batch)


def prefix(engine: MemoryEngine) -> int:
    """How many writes the engine holds; fails unless they are whole and the first ones."""
    count = len(list(engine.scan(b"first", b"first~")))
    assert [key for key, _ in engine.scan(b"first", b"first~")] == [b"first %03d" % number for number in range(count)]
    assert [key for key, _ in engine.scan(b"second", b"second~")] == [b"second %03d" % (count - 1)] * (count > 0)
    assert engine.get(b"common") == (b"%d" % (count - 1) if count else None)
    assert engine.position == engine.durable == count
    return count


@pytest.mark.parametrize("wal", [True, False])
def test_crash_keeps_a_prefix_beyond_what_is_durable(wal: bool) -> None:
    seen = set()
    for seed in range(200):
        engine = MemoryEngine(wal=wal)
        for number in range(10):
            write(engine, number)
            if number == 3:
                engine.sync() if wal else engine.flush()
        heir = engine.crash(Random(seed))
        seen.add(prefix(heir))
        with pytest.raises(StoreError):
            engine.get(b"common")
    assert seen == set(range(4, 11))


def test_crash_after_crash() -> None:
    engine = MemoryEngine(wal=True)
    for number in range(5):
        write(engine, number)
    engine = engine.crash(KeepAll())
    assert prefix(engine) == 5
    write(engine, 5)
    assert prefix(engine.crash(LoseAll())) == 5


def test_a_sync_may_end_later_than_it_began() -> None:
    """What was written in between isn't durable by it."""
    engine = MemoryEngine(wal=True)
    write(engine, 0)
    began = engine.position
    write(engine, 1)
    engine.make_durable(began)
    assert prefix(engine.crash(LoseAll())) == 1


def test_snapshot_survives_writes_until_the_crash() -> None:
    engine = MemoryEngine(wal=True)
    write(engine, 0)
    snapshot = engine.snapshot()
    write(engine, 1)
    heir = engine.crash(LoseAll())
    assert prefix(heir) == 0
    with pytest.raises(StoreError):
        snapshot.get(b"common")


def test_stall() -> None:
    engine = MemoryEngine(wal=True)
    engine.fail(Fault.STALL, 2)
    for _ in range(2):
        with pytest.raises(WriteStalled):
            write(engine, 0)
        assert engine.get(b"common") is None
    write(engine, 0)
    assert engine.position == 1


def test_full_breaks_an_engine_with_wal_only() -> None:
    for wal in (True, False):
        engine = MemoryEngine(wal=wal)
        write(engine, 0)
        engine.fail(Fault.FULL, ALWAYS)
        with pytest.raises(DiskFull):
            write(engine, 1)
        engine.heal()
        if wal:
            with pytest.raises(StoreError):
                write(engine, 1)
        else:
            write(engine, 1)
        assert prefix(engine.crash(KeepAll())) == (1 if wal else 2)


@pytest.mark.parametrize(("fault", "wal"), [(Fault.SYNC, True), (Fault.FLUSH, False)])
def test_failed_sync_is_final(fault: Fault, wal: bool) -> None:
    engine = MemoryEngine(wal=wal)
    write(engine, 0)
    engine.fail(fault)
    for _ in range(2):
        with pytest.raises(StoreError):
            engine.sync() if wal else engine.flush()
    assert prefix(engine.crash(LoseAll())) == 0


def test_flipped_bit() -> None:
    engine = MemoryEngine(wal=True)
    for number in range(3):
        write(engine, number)
    snapshot = engine.snapshot()
    engine.flip(b"common", 1, detected=False)
    assert engine.get(b"common") == b"0"  # was 2
    assert snapshot.get(b"common") == b"2"
    engine.flip(b"first 001", 0, detected=True)
    with pytest.raises(Corruption):
        engine.get(b"first 001")
    scan = engine.scan(b"", b"\xff")
    assert [next(scan)[0], next(scan)[0]] == [b"common", b"first 000"]
    with pytest.raises(Corruption):
        next(scan)
    engine.sync()
    engine = engine.crash(LoseAll())
    with pytest.raises(Corruption):
        engine.get(b"first 001")
    write(engine, 1)
    assert engine.get(b"first 001") == b"x"

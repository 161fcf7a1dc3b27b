"""Zeros lie ahead of the log's records, in its newest WAL, and never over them."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from nebuladb.errors import WriteStalled
from nebuladb.ids import BatchId
from nebuladb.storage.engine import Batch
from nebuladb.storage.log_keys import STAMP_KEY, Stamp, encode_stamp
from nebuladb.storage.preallocation import LOW, ZEROS, Preallocation
from nebuladb.storage.rocks import RocksEngine
from nebuladb.storage.wal import examine, wal_files
from tests.unit.storage.test_wal import as_killed


def batch(engine: RocksEngine, number: int, size: int) -> Batch:
    rows = Batch()
    rows.put(STAMP_KEY, encode_stamp(number, number - 1, engine.identity))
    rows.put(b"key %d" % number, b"x" * size)
    return rows


def written(engine: RocksEngine, path: Path) -> int:
    """Where the records of the newest WAL end. (Older ones RocksDB may be removing.)"""
    ((_, end),) = examine(wal_files(path)[-1:], Stamp(BatchId(1 << 40)), engine.identity).sound
    return end


def test_zeros_lie_ahead_of_rocksdbs_records_and_are_used(tmp_path: Path) -> None:
    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path)
    (file,) = wal_files(path)
    sizes = set()
    for number in range(1, 1001):
        engine.write(batch(engine, number, 1000))
        sizes.add(file.stat().st_size)
        assert written(engine, path) <= file.stat().st_size
    engine.sync()
    assert len(sizes) <= 1000 * 1100 // len(ZEROS) + 1  # of 1,000 syncs, so many would have had a new size
    assert file.read_bytes()[written(engine, path) :].count(0) == file.stat().st_size - written(engine, path)
    killed = as_killed(path)
    engine.close()
    for found in (killed, path):
        again = RocksEngine.open_log(found)
        assert [again.get(b"key %d" % number) for number in range(1, 1001)] == [b"x" * 1000] * 1000
        again.close()


def test_a_new_wal_gets_its_own(tmp_path: Path) -> None:
    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path, memtable_bytes=1 << 20)
    seen = set()
    for number in range(1, 1501):
        engine.write(batch(engine, number, 3000))
        newest = wal_files(path)[-1]
        if newest.stat().st_size - written(engine, path) > 0:
            seen.add(newest)
    assert len(seen) >= 3
    engine.close()
    assert RocksEngine.open_log(path).get(b"key 1500") == b"x" * 3000


def _target(descriptor: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


@pytest.mark.parametrize("seed", range(20))
def test_records_are_never_written_over(seed: int, tmp_path: Path) -> None:
    """However wrong the guess of what a batch takes, and whenever another file comes."""
    rng = random.Random(seed)
    ahead = Preallocation(tmp_path)
    wanted: dict[Path, bytes] = {}
    number = 8
    wal = os.open(tmp_path / f"{number:06}.log", os.O_WRONLY | os.O_CREAT)
    wanted[tmp_path / f"{number:06}.log"] = b""
    for _ in range(300):
        record = rng.randbytes(rng.randrange(1, 30_000))
        if rng.random() < 0.02:
            os.close(wal)
            number += rng.choice((1, 1_000_000))  # RocksDB's numbers have six digits, or more
            wal = os.open(tmp_path / f"{number:06}.log", os.O_WRONLY | os.O_CREAT)
            wanted[tmp_path / f"{number:06}.log"] = b""
        os.write(wal, record)
        wanted[tmp_path / f"{number:06}.log"] += record
        ahead.wrote(rng.randrange(3), int(len(record) * rng.choice((0, 0.5, 1, 3))))
    os.close(wal)
    assert not [name for name in os.listdir("/proc/self/fd") if _target(name).startswith(str(tmp_path))]
    for path, records in wanted.items():
        found = path.read_bytes()
        assert found[: len(records)] == records
        assert not any(found[len(records) :])
        assert len(found) - len(records) <= len(ZEROS) + len(LOW)
    assert any(path.stat().st_size > len(records) for path, records in wanted.items())


def test_where_no_zeros_can_be_written_the_batch_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path)
    monkeypatch.setattr(os, "pwrite", full)
    engine.write(batch(engine, 1, 10))
    assert wal_files(path)[0].stat().st_size == written(engine, path)
    monkeypatch.undo()
    for number in range(2, 400):
        engine.write(batch(engine, number, 1000))
    assert wal_files(path)[0].stat().st_size > written(engine, path)  # it is tried again
    engine.close()


def test_a_refused_batch_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again every few milliseconds, as long as the disk is slow."""
    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path)
    engine.write(batch(engine, 1, 10))
    (file,) = wal_files(path)
    before = file.stat().st_size

    def stalled(*_: object) -> None:
        raise Exception("Result incomplete: Write stall")

    monkeypatch.setattr(engine, "_db", type("Stalled", (), {"write": stalled}))
    for _ in range(1000):
        with pytest.raises(WriteStalled):
            engine.write(batch(engine, 2, 1000))
    monkeypatch.undo()
    assert file.stat().st_size == before
    engine.close()


@pytest.mark.parametrize("size", [1, 10, 300, 100_000])
def test_zeros_are_few_whatever_is_written(size: int, tmp_path: Path) -> None:
    path = tmp_path / "raft"
    engine = RocksEngine.open_log(path)
    (file,) = wal_files(path)
    (path / "copy.log").write_bytes(b"of somebody's")
    most = 0
    for number in range(1, 2 * (1 << 20) // (size + 60)):
        engine.write(batch(engine, number, size))
        if number % 500 == 0:
            most = max(most, file.stat().st_size - written(engine, path))
    assert max(most, file.stat().st_size - written(engine, path)) <= len(ZEROS) + len(LOW)
    assert file.stat().st_size > written(engine, path)
    assert (path / "copy.log").read_bytes() == b"of somebody's"
    engine.close()


def test_nothing_to_write_to(tmp_path: Path) -> None:
    Preallocation(tmp_path).wrote(1, 100)
    Preallocation(tmp_path / "missing").wrote(1, 100)
    assert list(tmp_path.iterdir()) == []

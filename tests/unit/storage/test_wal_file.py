"""The file that may be synced beside RocksDB is the one that it writes to, whenever it begins another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nebuladb.errors import StoreError, WriteStalled
from nebuladb.storage.engine import Batch
from nebuladb.storage.memory import MemoryEngine
from nebuladb.storage.rocks import RocksEngine
from nebuladb.storage.wal import wal_files
from nebuladb.storage.wal_file import WalFile


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[RocksEngine]:
    engine = RocksEngine.open_log(tmp_path / "raft", memtable_bytes=256 << 10)
    yield engine
    engine.close()


def write(engine: RocksEngine, key: bytes) -> None:
    batch = Batch()
    batch.put(key, os.urandom(1000))
    for _ in range(10_000):
        try:
            engine.write(batch)
            return
        except WriteStalled:
            time.sleep(0.001)
    raise AssertionError("RocksDB has been refusing writes for ten seconds")


def test_all_that_a_full_sync_didnt_cover_is_in_that_file(engine: RocksEngine, tmp_path: Path) -> None:
    unsynced: list[bytes] = []
    files: set[str] = set()
    told = 0
    for number in range(3_000):
        key = b"key %06d" % number
        write(engine, key)
        unsynced.append(key)
        file = engine.sync_file()
        if file is None:
            engine.sync()
            unsynced.clear()
            continue
        told += 1
        newest = wal_files(tmp_path / "raft")[-1].stat()
        assert (os.fstat(file).st_dev, os.fstat(file).st_ino) == (newest.st_dev, newest.st_ino)
        files.add(wal_files(tmp_path / "raft")[-1].name)
        if number % 50 == 0:
            content = os.pread(file, newest.st_size, 0)
            assert all(key in content for key in unsynced)
    assert len(files) > 2  # so often RocksDB began another
    assert told > 2_500


def test_none_before_the_first_sync_and_none_after_a_new_file_began(engine: RocksEngine, tmp_path: Path) -> None:
    assert engine.sync_file() is None
    engine.sync()
    first = wal_files(tmp_path / "raft")[-1]
    assert engine.sync_file() is not None
    number = 0
    while wal_files(tmp_path / "raft")[-1] == first:
        number += 1
        write(engine, b"%06d" % number)
    assert engine.sync_file() is None
    while (file := engine.sync_file()) is None:  # once more if the old memtable's flush ended meanwhile
        engine.sync()
    assert os.fstat(file).st_ino == wal_files(tmp_path / "raft")[-1].stat().st_ino


def test_a_file_that_began_during_the_sync_is_not_taken(tmp_path: Path) -> None:
    version = 1
    path = tmp_path / "000004.log"
    path.touch()

    def begins_another() -> None:
        nonlocal version
        version += 1

    file = WalFile(tmp_path, lambda: version)
    file.sync(begins_another)
    assert file.descriptor() is None
    file.sync(lambda: None)
    assert file.descriptor() is not None
    file.close()
    assert file.descriptor() is None


def test_a_failed_sync_leaves_the_file_of_before(tmp_path: Path) -> None:
    (tmp_path / "000004.log").touch()

    def fails() -> None:
        raise StoreError("no disk")

    file = WalFile(tmp_path, lambda: 1)
    with pytest.raises(StoreError):
        file.sync(fails)
    assert file.descriptor() is None
    file.close()


@pytest.mark.parametrize("version", [None, 1])
def test_where_nothing_can_be_told_there_is_none(tmp_path: Path, version: int | None) -> None:
    file = WalFile(tmp_path, lambda: version)  # a directory without any WAL
    file.sync(lambda: None)
    assert file.descriptor() is None


def test_descriptors_dont_gather(engine: RocksEngine) -> None:
    engine.sync()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(200):
        write(engine, b"%06d" % number)
        engine.sync()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 8  # RocksDB opens tables


def test_others_have_none(tmp_path: Path) -> None:
    data = RocksEngine.open_data(tmp_path / "data")
    assert data.sync_file() is None
    data.close()
    assert MemoryEngine(wal=True).sync_file() is None

"""S34 where a log was closed in order: tables hold all of it, and an empty WAL can't tell what is lost of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nebuladb.errors import Corruption
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.entry import encode_entry
from nebuladb.raft.ready import HardState
from nebuladb.storage.closed import FILE, note, noted
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.rocks import RocksEngine, examine_log

GROUP = GroupId(1)


def grow(path: Path, count: int) -> int:
    """`count` batches more, of which a table holds them all, as after an orderly end; the last one's number."""
    store = LogStore(RocksEngine.open_log(path))
    for number in range(store.last_batch + 1, store.last_batch + 1 + count):
        batch = LogBatch(BatchId(number))
        if number == 1:
            batch.create(GROUP, 0, 1)
        batch.write(GroupWrite(GROUP, HardState(1, 7, 0), [encode_entry(number, 1, 0, b"%d" % number)]))
        store.write(batch, BatchId(number - 1))
    store.sync()
    store.close()
    return store.last_batch


def last(path: Path) -> int:
    store = LogStore(RocksEngine.open_log(path))
    store.close()
    return store.last_batch


def manifest(path: Path) -> Path:
    return path / (path / "CURRENT").read_text().strip()


def test_a_manifest_that_lost_its_end_is_found_out(tmp_path: Path) -> None:
    """Without the last table the log ended ten batches earlier, a vote or acknowledged entries among them."""
    path = tmp_path / "raft"
    grow(path, 10)
    assert grow(path, 10) == 20
    refused = 0
    for size in range(1, 80, 6):
        damaged = shutil.copytree(path, tmp_path / f"less {size}")
        file = manifest(damaged)
        os.truncate(file, file.stat().st_size - size)
        found = examine_log(damaged)
        assert found is not None
        if found.kept == 20:
            assert last(damaged) == 20
            continue
        refused += 1
        with pytest.raises(Corruption, match="log batches 11 to 20 had been made durable"):
            RocksEngine.open_log(damaged)
    assert refused > 5
    assert last(path) == 20


def test_an_end_that_was_not_in_order_is_behind_it(tmp_path: Path) -> None:
    """What was written since the file was is for the WAL to tell."""
    path = tmp_path / "raft"
    assert grow(path, 3) == 3
    kept = (path / FILE).read_bytes()
    assert grow(path, 3) == 6
    (path / FILE).write_bytes(kept)
    found = examine_log(path)
    assert found is not None
    assert (found.kept, found.missing) == (6, "")
    (path / FILE).unlink()  # of a build that didn't have it
    assert last(path) == 6
    assert noted(path) == 6


def test_who_gives_up_what_is_lost_opens_it_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "raft"
    grow(path, 3)
    note(path, BatchId(9))
    with pytest.raises(Corruption, match="log batches 4 to 9 "):
        RocksEngine.open_log(path)
    RocksEngine.open_log(path, lossy=True).close()
    assert last(path) == 3


@pytest.mark.parametrize("left", [(), ("IDENTITY",), ("IDENTITY", "OPTIONS", "LOG")], ids=repr)
def test_a_log_of_which_only_the_note_is_left_is_no_new_one(tmp_path: Path, left: tuple[str, ...]) -> None:
    """Without CURRENT, tables and WAL it was opened as one that never had a batch."""
    path = tmp_path / "raft"
    grow(path, 3)
    for file in path.iterdir():
        if not file.name.startswith((FILE, *left)):
            file.unlink()
    for _ in range(2):
        with pytest.raises(Corruption, match=r"WAL \(\*.log\) are gone.*forgotten a vote.*member replace"):
            RocksEngine.open_log(path)
    found = examine_log(path)
    assert found is not None
    assert found.missing


@pytest.mark.parametrize("text", [b"", b"3\n", b"3 00000000\n", b"\xff" * 20, b"0" * 100])
def test_a_note_that_is_damaged_says_nothing(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "raft"
    grow(path, 3)
    (path / FILE).write_bytes(text)
    assert noted(path) == 0
    assert last(path) == 3

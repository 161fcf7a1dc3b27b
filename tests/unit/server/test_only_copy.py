"""A data store that is damaged, and that no other node has: it isn't put aside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nebuladb.errors import DataDamaged, StoreError
from nebuladb.ids import META_GROUP, BatchId, GroupId
from nebuladb.node.memory import plan
from nebuladb.node.registry import first_row
from nebuladb.server import assembly, config
from nebuladb.server.directory import DAMAGED, DataDirectory
from nebuladb.server.lifecycle import Shutdown
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.rocks import RocksMemory

META = GroupId(META_GROUP)
INITIAL = (1, 1)


class Started(Exception):
    """In place of a new process."""


def used(path: Path, nodes: dict[int, int], begins: int, voters: tuple[int, ...] = ()) -> None:
    """A directory with a replica on `nodes`, all of which vote unless `voters` says who does, whose log begins behind
    index `begins`; and with data."""
    directory = DataDirectory(path)
    log = directory.open_log(plan(), RocksMemory(1 << 20, 1 << 20))
    batch = LogBatch(BatchId(1))
    batch.create(META, begins, 1)
    batch.register(META, first_row(1, nodes, INITIAL, voters).encode())
    log.write(batch, BatchId(0))
    log.sync()
    log.close()
    directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20)).close()
    directory.close()


def failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs on the directory meets damage in use."""

    async def serve(_: object, shutdown: Shutdown) -> int:
        directory = DataDirectory(path)
        log = directory.open_log(plan(), RocksMemory(1 << 20, 1 << 20))
        shutdown.fail(DataDamaged("Corruption: block checksum mismatch"))
        assembly._close_log(log, shutdown)
        directory.close()
        return shutdown.exit_code()

    def start(*_: object) -> None:
        raise Started

    monkeypatch.setattr(assembly, "_serve", serve)
    monkeypatch.setattr(assembly, "end_in_time", lambda: None)
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(sys, "orig_argv", [])
    assembly.run(config.load({"data-dir": str(path), "name": "n1"}, {}))


@pytest.mark.parametrize(
    ("nodes", "begins"), [({1: 11, 2: 12}, 7), ({1: 11}, INITIAL[0])], ids=["other nodes", "the whole log"]
)
def test_what_can_be_had_again_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: dict[int, int], begins: int
) -> None:
    used(tmp_path, nodes, begins)
    with pytest.raises(Started):
        failed(tmp_path, monkeypatch)
    assert (tmp_path / DAMAGED).is_dir()


@pytest.mark.parametrize("nodes", [{1: 11}, {1: 11, 2: 12}], ids=["alone", "a learner"])
def test_the_only_copy_stays_where_it_is_when_a_block_is_found_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: dict[int, int]
) -> None:
    """One bad block, met by a compaction: all the data was put aside, for a snapshot that nobody could send."""
    used(tmp_path, nodes, 7, voters=(1,))
    with pytest.raises(StoreError, match=r"block checksum mismatch.*no other node.*stays where it is.*backup"):
        failed(tmp_path, monkeypatch)
    assert (tmp_path / "data").is_dir()
    assert not (tmp_path / DAMAGED).exists()


def test_the_only_copy_stays_where_it_is_when_it_can_not_be_opened(tmp_path: Path) -> None:
    used(tmp_path, {1: 11}, 7)
    (tmp_path / "data" / "CURRENT").unlink()
    directory = DataDirectory(tmp_path)
    directory.open_log(plan(), RocksMemory(1 << 20, 1 << 20)).close()
    with pytest.raises(StoreError, match=r"no other node.*stays where it is"):
        directory.open_data(plan(), RocksMemory(1 << 20, 1 << 20))
    directory.close()
    assert not (tmp_path / DAMAGED).exists()

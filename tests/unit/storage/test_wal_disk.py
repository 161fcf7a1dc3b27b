"""A disk that fails while the WAL is examined is not taken for a log that is damaged (S34)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nebuladb.errors import Corruption, DiskFull, StoreError
from nebuladb.ids import BatchId, GroupId
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.rocks import RocksEngine, examine_log
from nebuladb.storage.wal import cut, wal_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log whose batch is in a table, and so not in its WAL."""
    log = LogStore(RocksEngine.open_log(tmp_path / "raft"))
    batch = LogBatch(BatchId(1))
    batch.register(GroupId(1), b"row")
    log.write(batch, BatchId(0))
    log.close()
    return tmp_path / "raft"


def failing(number: int, *, at: str, named: bool = False) -> object:
    """A call that fails for the file or directory of this name, as the system does: without it in the error, once the
    file is open."""

    def call(self: Path | str, *_: object) -> object:
        assert Path(self).name.endswith(at)
        raise OSError(number, os.strerror(number), *([str(self)] if named else []))

    return call


def test_a_directory_that_can_not_be_listed_has_not_lost_its_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said to have forgotten a vote, and whom to put in its place."""
    loop = path.with_name("loop")
    loop.symlink_to(loop)
    with pytest.raises(StoreError, match=r"can't list .*loop: Too many levels of symbolic links"):
        wal_files(loop)
    assert wal_files(path.with_name("none")) == []
    monkeypatch.setattr(os, "listdir", failing(errno.EMFILE, at="raft", named=True))
    with pytest.raises(StoreError, match=r"can't list .*raft: Too many open files") as raised:
        RocksEngine.open_log(path)
    assert not isinstance(raised.value, Corruption)


@pytest.mark.parametrize("at", [".log", "IDENTITY"])
def test_a_file_that_can_not_be_read_is_named(path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    read_bytes = Path.read_bytes

    def failing_there(file: Path) -> bytes:
        if file.name.endswith(at):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", failing_there)
    with pytest.raises(StoreError, match=rf"can't read /.*{at}: Input/output error"):
        examine_log(path)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreError)])
@pytest.mark.parametrize("behind", [False, True])
def test_a_torn_end_that_can_not_be_cut_is_an_error_that_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError], behind: bool
) -> None:
    """It was a traceback, and where there was no room for it, the end of the node instead of a wait."""
    file = wal_files(path)[-1]
    with file.open("ab") as torn:
        torn.write(bytes(4_096))
    if behind:
        found = examine_log(path)
        assert found is not None
        monkeypatch.setattr(Path, "unlink", failing(number, at=".log", named=True))
        with pytest.raises(kind, match=rf"can't write {file}: {os.strerror(number)}"):
            cut(found._replace(behind=[file]))
        return
    monkeypatch.setattr(os, "truncate", failing(number, at=".log", named=True))
    with pytest.raises(kind, match=rf"can't write {file}: {os.strerror(number)}"):
        RocksEngine.open_log(path)


def test_an_inspection_says_where_it_has_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It copies the WAL to where temporary files go, whose disk may be a small one."""
    found = examine_log(path)
    monkeypatch.setattr(Path, "write_bytes", failing(errno.ENOSPC, at=".log"))
    with pytest.raises(DiskFull, match=r"can't write /.*nebuladb-.*\.log: No space left on device"):
        RocksEngine.inspect(path, found)

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nebuladb.errors import DiskFull, StoreError
from nebuladb.storage.files import temporary_directory, unwritten, write_durably
from nebuladb.storage.rocks import RocksEngine


def test_replaces(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["identity"]


def test_order_of_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, then the name, then the directory: any other order can lose the file or leave a part of it."""
    path = tmp_path / "identity"
    path.write_bytes(b"old")
    events: list[object] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append((name.name if name != tmp_path else "directory", path.read_bytes()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    write_durably(path, b"new")
    assert events == [("identity.tmp", b"old"), ("directory", b"new")]


def test_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity"
    write_durably(path, b"old")

    def fail(descriptor: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StoreError)]
)
def test_a_quota_that_is_used_up_is_a_full_disk(number: int, kind: type[StoreError], tmp_path: Path) -> None:
    assert type(unwritten(tmp_path, OSError(number, os.strerror(number)))) is kind


def no_directory() -> str:
    """`tempfile.gettempdir` where /tmp, /var/tmp and the working directory can't be written."""
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


def test_a_temporary_directory_is_made_beside_the_data_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose root file system is read-only."""
    monkeypatch.setattr("tempfile.gettempdir", no_directory)
    with temporary_directory(tmp_path) as made:
        assert Path(made).parent == tmp_path
    assert not os.listdir(tmp_path)
    with pytest.raises(StoreError, match="set TMPDIR to a directory that can be written"):
        temporary_directory(tmp_path / "missing")


def test_a_log_opens_where_only_its_own_directory_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RocksEngine.open_log(tmp_path / "raft").close()
    monkeypatch.setattr("tempfile.gettempdir", no_directory)
    RocksEngine.open_log(tmp_path / "raft").close()
    assert os.listdir(tmp_path) == ["raft"]

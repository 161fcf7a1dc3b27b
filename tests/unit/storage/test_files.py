from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nebuladb.storage.files import write_durably


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

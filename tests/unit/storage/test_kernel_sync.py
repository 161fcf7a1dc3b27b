"""The kernel's own syncs: what it takes, and how it says that one is over. (Failing disks: tests/integration.)"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import pytest

from nebuladb.storage.kernel_sync import KernelSync


@pytest.fixture
def kernel() -> KernelSync:
    kernel = KernelSync.open()
    if kernel is None:
        pytest.skip("this kernel has no AIO, or a sandbox forbids it")
    return kernel


def wait(kernel: KernelSync) -> None:
    assert select.select([kernel.fileno], [], [], 30)[0]


def test_a_sync_is_told_of_once(kernel: KernelSync, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for number in range(100):
        os.pwrite(file, b"x" * 1000, number * 1000)
        assert kernel.begin(file)
        wait(kernel)
        assert kernel.finished()
        assert not kernel.finished()
    os.close(file)


def test_the_file_may_be_closed_meanwhile(kernel: KernelSync, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"x")
    assert kernel.begin(file)
    os.close(file)
    wait(kernel)
    assert kernel.finished()


def test_what_has_no_disk_beneath_is_refused(kernel: KernelSync) -> None:
    reader, writer = os.pipe()
    assert not kernel.begin(writer)
    os.close(reader)
    os.close(writer)
    assert not kernel.begin(writer)


def test_without_the_module_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "caio.linux_aio", None)
    assert KernelSync.open() is None

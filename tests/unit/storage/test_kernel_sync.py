"""The kernel's own syncs: what it takes, and how it says that one is over. (Failing disks: tests/integration.)"""

from __future__ import annotations

import errno
import os
import platform
import select
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nebuladb.errors import DiskFull, StoreError
from nebuladb.storage import kernel_sync
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


def test_children_dont_inherit_it(kernel: KernelSync) -> None:
    assert not os.get_inheritable(kernel.fileno)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StoreError)]
)
def test_what_a_failed_sync_means(
    kernel: KernelSync, number: int, kind: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = SimpleNamespace(poll=lambda: None, process_events=lambda _: kernel._results.append((1 << 64) - number))
    monkeypatch.setattr(kernel, "_context", answers)
    with pytest.raises(kind) as raised:
        kernel.finished()
    assert type(raised.value) is kind


def test_without_the_module_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError

    monkeypatch.setattr(kernel_sync, "_module", missing)
    assert KernelSync.open() is None


REFUSED = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
allow, refuse, load, equal = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x20, 0x15
number = int(sys.argv[1])
class Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.POINTER(Step))]
steps = (Step * 4)(Step(load, 0, 0, 0), Step(equal, 0, 1, number), Step(6, 0, 0, refuse), Step(6, 0, 0, allow))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, steps)), 0, 0) == 0
from nebuladb.storage.kernel_sync import KernelSync
print(KernelSync.open())
"""
"""A process that may not make one call (seccomp), as in a sandbox."""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are this machine's")
@pytest.mark.parametrize("number", [206, 208], ids=["io_setup", "io_getevents"])
def test_in_a_sandbox_that_refuses_a_call_there_is_none(kernel: KernelSync, number: int) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED, str(number)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr

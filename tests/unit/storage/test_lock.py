from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nebuladb.errors import IdentityError
from nebuladb.storage.lock import DirectoryLock
from nebuladb.storage.owner import LOCK_FILE

HOLDER = """
import pathlib, sys
from nebuladb.storage.lock import DirectoryLock
lock = DirectoryLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(IdentityError, match=f"{tmp_path} is in use by another nebulad .process {holder.pid}."):
            DirectoryLock(tmp_path)
        holder.kill()
    lock = DirectoryLock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    lock.release()
    lock.release()
    DirectoryLock(tmp_path).release()


def test_unreadable_owner(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    (tmp_path / LOCK_FILE).write_bytes(b"\xffrubbish")
    with pytest.raises(IdentityError, match="another process"):
        DirectoryLock(tmp_path)
    lock.release()


def test_children_do_not_inherit_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    command = [sys.executable, "-c", "import sys; print('runs', flush=True); sys.stdin.read()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, close_fds=False) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"
        lock.release()
        DirectoryLock(tmp_path).release()
        child.kill()

"""`nebula-cli get --file`: what is there already is replaced, or written as it lies there."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.client.fake import Node

NOBODY = 65534
VALUE = b"value"


@pytest.fixture(autouse=True)
def _stored(cli: Cli) -> None:
    cli("put", "k", VALUE.decode())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("gone", [False, True], ids=["renamed", "deleted"])
def test_an_open_file_is_written_whatever_its_name(cli: Cli, tmp_path: Path, gone: bool) -> None:
    """The value went to the name, and its reader, who has the file open, saw nothing of it."""
    file = tmp_path / "file"
    with file.open("w+b", buffering=0) as opened:
        opened.write(b"before ")
        if gone:
            file.unlink()
        (tmp_path / "link").symlink_to(f"/dev/fd/{opened.fileno()}")
        for place in (f"/dev/fd/{opened.fileno()}", f"/proc/{os.getpid()}/fd/{opened.fileno()}", tmp_path / "link"):
            assert cli("get", "k", "--file", str(place)).exit_code == 0
        assert os.pread(opened.fileno(), 100, 0) == b"before " + 3 * VALUE
    assert os.listdir(tmp_path) == ["link"] if gone else sorted(os.listdir(tmp_path)) == ["file", "link"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_stdout_by_its_name(nodes: list[Node], tmp_path: Path) -> None:
    """What others write into the same stdout, before and after, stays."""
    file = tmp_path / "file"
    ours = f"{sys.executable} -c 'from nebuladb.cli.main import main; main()' --endpoints {nodes[0].address}"
    ours += " get k --file /dev/stdout"
    subprocess.run(["sh", "-c", f"{{ echo a; {ours}; echo b; }} >{file}"], check=True)
    assert file.read_bytes() == b"a\n" + VALUE + b"b\n"


def test_every_name_of_a_file_has_the_value(cli: Cli, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"a longer one")
    other.hardlink_to(file)
    assert cli("get", "k", "--file", str(file)).exit_code == 0
    assert (file.read_bytes(), other.read_bytes()) == (VALUE, VALUE)
    assert file.samefile(other)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("user", "group"), [(NOBODY, 0), (0, NOBODY)])
def test_another_users_file_stays_that_users(cli: Cli, tmp_path: Path, user: int, group: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a longer one")
    os.chown(file, user, group)
    assert cli("get", "k", "--file", str(file)).exit_code == 0
    found = file.stat()
    assert (file.read_bytes(), found.st_uid, found.st_gid) == (VALUE, user, group)


def test_the_group_of_a_file_stays(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, user, group: groups.append((user, group)))
    file = tmp_path / "file"
    for _ in range(2):
        assert cli("get", "k", "--file", str(file)).exit_code == 0
    assert groups == [(-1, -1), (-1, file.stat().st_gid)]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EBUSY])
def test_where_no_other_file_can_be_it_is_written_in_place(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """In a directory that isn't ours to write, and where it is a mount point: a container's settings, say."""
    file = tmp_path / "file"
    file.write_bytes(b"a longer one")
    file.chmod(0o640)
    node = file.stat().st_ino

    def refused(*_: object, **__: object) -> tuple[int, bytes]:
        raise OSError(code, os.strerror(code))

    if code == errno.EBUSY:
        monkeypatch.setattr(os, "replace", refused)
    else:
        monkeypatch.setattr(tempfile, "mkstemp", refused)
    assert cli("get", "k", "--file", str(file)).exit_code == 0
    assert (file.read_bytes(), file.stat().st_ino, stat.S_IMODE(file.stat().st_mode)) == (VALUE, node, 0o640)
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_is_no_place(cli: Cli, tmp_path: Path) -> None:
    """A name that ends in a slash was taken for one without."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name, says in (("new/", "Is a directory"), ("file/", "Is a directory"), ("loop", "Too many levels")):
        answer = cli("get", "k", "--file", f"{tmp_path}/{name}")
        assert (answer.exit_code, answer.stdout) == (1, "")
        assert answer.stderr.startswith(f"nebula-cli: {tmp_path}/{name}: {says}")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_a_link_whose_file_is_missing_stays_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below/second")
    (tmp_path / "below" / "second").symlink_to("third")
    assert cli("get", "k", "--file", str(tmp_path / "link")).exit_code == 0
    assert (tmp_path / "below" / "third").read_bytes() == VALUE
    assert (tmp_path / "link").is_symlink()

"""What isn't the node's to use is named; what root makes is the directory's owner's."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nebuladb.errors import ConfigurationError
from nebuladb.server.directory import DataDirectory
from nebuladb.server.recover import recover
from nebuladb.server.verify import verify
from nebuladb.storage.lock import DirectoryLock
from nebuladb.storage.owner import LOCK_FILE, check_access, give

NOBODY = 65534
ROOT = os.geteuid() == 0


@pytest.fixture
def owned() -> Iterator[Path]:
    """A directory of `NOBODY`'s where the tests run as root, who may use all; else of our own. It has all parts."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        for database in ("raft", "data"):
            (path / database).mkdir()
            for file in ("CURRENT", "LOCK", "000004.log", "000005.sst"):
                (path / database / file).write_bytes(b"")
        for file in ("identity.json", "founding.json", "voting", LOCK_FILE):
            (path / file).write_bytes(b"{}")
        if ROOT:
            for one in (path, *path.rglob("*")):
                os.chown(one, NOBODY, NOBODY)
        yield path


@contextmanager
def as_owner() -> Iterator[None]:
    if ROOT:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT:
            os.seteuid(0)
            os.setegid(0)


def take(path: Path, mode: int = 0) -> None:
    """Make it what root left, or, where we aren't root, as good as that."""
    path.chmod(mode)
    if ROOT:
        os.chown(path, 0, 0)


@pytest.mark.parametrize(
    "part",
    [
        "identity.json",
        "founding.json",
        "voting",
        LOCK_FILE,
        "raft",
        "raft/LOCK",
        "raft/000004.log",
        "raft/CURRENT",
        "data",
        "data/000005.sst",
    ],
)
def test_a_part_that_is_another_user_s_is_named_and_is_no_damage(owned: Path, part: str) -> None:
    with as_owner():
        check_access(owned)
    take(owned / part)
    told = rf"{owned / part} isn't this user's \(uid \d+\).* chown -R USER: {owned}$"
    with as_owner():
        with pytest.raises(ConfigurationError, match=told):
            DataDirectory(owned)
        with pytest.raises(ConfigurationError, match=told):
            list(verify(owned))
        with pytest.raises(ConfigurationError, match=told):
            recover(owned, lambda text: None)
    os.chmod(owned / part, 0o700)


def test_what_may_be_read_and_is_replaced_as_a_whole_may_be_another_s(owned: Path) -> None:
    for part in ("identity.json", "voting", "data/000005.sst", "raft/CURRENT"):
        take(owned / part, 0o444)
    for name in ("monday.snap", "notes.json"):  # nothing of the node's
        (owned / name).touch(0)
    with as_owner():
        check_access(owned)


def test_what_no_start_reads_may_be_anybody_s(owned: Path) -> None:
    (owned / "raft" / "lost+found").mkdir()
    for name in ("LOG", "LOG.old.1700000000", "OPTIONS-000007", "core.123"):
        (owned / "raft" / name).write_bytes(b"x")
    for one in ("lost+found", "LOG", "LOG.old.1700000000", "OPTIONS-000007", "core.123"):
        take(owned / "raft" / one)
    take(owned / "raft" / "000004.log", 0o444)  # empty: it is removed
    with as_owner():
        check_access(owned)
    (owned / "raft" / "000004.log").chmod(0o644)
    (owned / "raft" / "000004.log").write_bytes(b"x")
    take(owned / "raft" / "000004.log", 0o444)
    with as_owner(), pytest.raises(ConfigurationError, match=r"000004.log isn't this user's"):
        check_access(owned)
    os.chmod(owned / "raft" / "lost+found", 0o700)


@pytest.mark.parametrize(
    ("part", "mode", "shown"),
    [
        (".", 0o555, "dr-xr-xr-x"),
        ("raft", 0o555, "dr-xr-xr-x"),
        ("data", 0o600, "drw-------"),
        (LOCK_FILE, 0o444, "-r--r--r--"),
        ("voting", 0o200, "--w-------"),
    ],
)
def test_what_is_our_own_wants_another_mode_and_no_other_owner(owned: Path, part: str, mode: int, shown: str) -> None:
    if part == ".":
        (owned / LOCK_FILE).unlink()  # which can't be made then: the directory is to blame
    (owned / part).chmod(mode)
    told = rf"{owned / part} is this user's \(uid \d+\), but its mode, {shown}, .*: chmod -R u\+rwX {owned}$"
    with as_owner():
        for refused in (DataDirectory, lambda path: list(verify(path)), lambda path: recover(path, lambda text: None)):
            with pytest.raises(ConfigurationError, match=told):
                refused(owned)
    (owned / part).chmod(0o700)


@pytest.mark.skipif(not ROOT, reason="needs to be root")
def test_a_node_that_root_runs_keeps_its_lock_file(owned: Path) -> None:
    (owned / LOCK_FILE).unlink()
    DirectoryLock(owned).release()
    assert (owned / LOCK_FILE).stat().st_uid == 0


@pytest.mark.skipif(not ROOT, reason="needs to be root")
def test_an_owner_that_can_not_be_named_is_none(owned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, user: int, group: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fchown", refused)
    (owned / LOCK_FILE).unlink()
    DirectoryLock(owned, give=True).release()


def test_a_directory_that_may_not_be_entered_is_named(owned: Path) -> None:
    take(owned)
    with as_owner():
        for refused in (DataDirectory, lambda path: list(verify(path)), lambda path: recover(path, lambda text: None)):
            with pytest.raises(ConfigurationError, match=f"{owned}.* isn't this user's"):
                refused(owned)
    os.chmod(owned, 0o700)


@pytest.mark.skipif(not ROOT, reason="needs to be root")
def test_root_gives_what_it_makes_to_the_owner_and_nothing_else(owned: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "shadow").write_bytes(b"")
    (owned / "linked").symlink_to(elsewhere)
    os.symlink(elsewhere / "shadow", owned / "link")
    outside = Path(tempfile.mkstemp(dir=owned.parent)[1])
    os.link(outside, owned / "second name")
    made = owned / "raft.new"
    made.mkdir()
    (made / "000004.log").write_bytes(b"")
    (owned / "theirs").write_bytes(b"")
    os.chown(owned / "theirs", 1, 1)
    (owned / LOCK_FILE).unlink()
    DirectoryLock(owned, give=True).release()
    assert (owned / LOCK_FILE).stat().st_uid == NOBODY
    assert made.stat().st_uid == 0
    give(owned)
    assert {one.stat().st_uid for one in (made, made / "000004.log")} == {NOBODY}
    assert {one.stat().st_gid for one in (made, made / "000004.log")} == {NOBODY}
    assert (owned / "theirs").stat().st_uid == 1
    assert {one.stat().st_uid for one in (elsewhere, elsewhere / "shadow", outside)} == {0}
    outside.unlink()


def test_a_first_start_below_a_directory_that_may_be_passed_through_only(owned: Path) -> None:
    """As /srv of mode 0711: the start ended with a traceback, and the next one went well."""
    parent = owned / "above"
    (parent / "node").mkdir(parents=True)
    if ROOT:
        os.chown(parent / "node", NOBODY, NOBODY)
    take(parent, 0o711 if ROOT else 0o311)
    with as_owner():
        directory = DataDirectory(parent / "node")
        identity = directory.identity("n1")
        assert directory.identity("n1") == identity
        directory.close()
    parent.chmod(0o755)

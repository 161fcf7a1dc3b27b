"""`nebula-cli snapshot`, of a node in memory."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli import progress, snapshot
from nebuladb.cli.main import main
from nebuladb.client import AsyncClient
from nebuladb.errors import Unavailable
from nebuladb.ids import GroupId
from nebuladb.kv.rows import Keys
from nebuladb.node.backup import BackupReader, BackupWriter
from nebuladb.pb.nebula.v1.cluster_pb2 import SnapshotRequest, SnapshotResponse
from nebuladb.server import site
from nebuladb.server.site import FIRST_GENERATION, MAX_REVISION
from nebuladb.storage.rocks import RocksEngine
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

Restore = Callable[..., Awaitable[Result]]
Save = Callable[..., Awaitable[Result]]


@pytest.fixture
async def restore(tmp_path: Path) -> AsyncIterator[Restore]:
    """`nebula-cli snapshot restore` of a backup into a directory, with flags."""
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)

    async def cli(*words: object) -> Result:
        arguments = ["--endpoints", faced.address, *map(str, words)]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments, catch_exceptions=False)

    file = tmp_path / "a.snap"
    saved = await cli("snapshot", "save", file)
    assert saved.exit_code == 0, saved.stderr

    async def run(directory: Path | str, *flags: object) -> Result:
        return await cli("snapshot", "restore", file, "--data-dir", directory, *flags)

    yield run
    await faced.close()


@pytest.fixture
async def save() -> AsyncIterator[Save]:
    """`nebula-cli snapshot save` to a file, with flags."""
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)

    async def run(file: Path, *flags: object) -> Result:
        arguments = ["--endpoints", faced.address, "snapshot", "save", str(file), *map(str, flags)]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments)

    yield run
    await faced.close()


async def test_what_failed_leaves_the_directory_as_it_was(restore: Restore, tmp_path: Path) -> None:
    """And a revision that is raised leaves room for the next ones: int64 had none, and every request failed."""
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.mkdir()
    for bump in (MAX_REVISION, (1 << 63) - 1, 1 << 70):
        for directory in (new, empty):
            refused = await restore(directory, "--bump-revision", bump)
            assert (refused.exit_code, refused.stdout) == (2, "")
            assert "bump-revision: " in refused.stderr
        assert not new.exists()
        assert [entry.name for entry in empty.iterdir()] == ["LOCK"]
    for directory in (new, empty):
        assert (await restore(directory, "--bump-revision", MAX_REVISION - 1_000)).exit_code == 0
    again = await restore(new)
    assert again.exit_code == 2
    assert "is not empty; name a new one" in again.stderr


async def test_what_an_interrupted_one_left_is_told_as_that(restore: Restore, tmp_path: Path) -> None:
    (tmp_path / "left" / "data").mkdir(parents=True)
    refused = await restore(tmp_path / "left")
    assert refused.exit_code == 2
    assert "what an interrupted restore left" in refused.stderr
    assert (tmp_path / "left" / "data").exists()


USERS = (4, 5, 6)
"""The groups of the first keyspace that is made."""


def rows_of(groups: tuple[int, ...], directory: Path) -> list[int]:
    """Those of `groups` that have a state in a data directory."""
    data = RocksEngine.open_data(directory / "data")
    try:
        return [group for group in groups if data.get(Keys(GroupId(group), FIRST_GENERATION).state) is not None]
    finally:
        data.close()


def without(name: str, source: Path, target: Path) -> Path:
    """The backup, as if keyspace `name` had been dropped behind its first shard."""
    writer, shards = BackupWriter(), 0
    with source.open("rb") as file:
        reader = BackupReader(file)
        data = writer.begin(reader.manifest)
        for part, chunks in reader.shards():
            ours = part.descriptor.keyspace == name
            shards += ours
            if ours and shards == 2:
                data += writer.gone(name)
            pieces = list(chunks)
            if not ours or shards == 1:
                data += writer.shard(part) + b"".join(map(writer.chunk, pieces))
    target.write_bytes(data + writer.end())
    return target


async def test_a_keyspace_that_was_dropped_meanwhile_is_told_and_not_restored(tmp_path: Path) -> None:
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)

    async def cli(*words: object) -> list[dict[str, object]]:
        arguments = ["--endpoints", faced.address, "-o", "json", *map(str, words)]
        result = await asyncio.to_thread(CliRunner().invoke, main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    async def restored(*files: Path) -> list[str]:
        """The keyspaces of the shards that are there then."""
        directory = files[-1].with_suffix(".dir")
        return [str(row["keyspace"]) for row in await cli("snapshot", "restore", *files, "--data-dir", directory)]

    await cli("keyspace", "create", "users", "--shards", 3)
    for number in range(10):
        await cli("--keyspace", "users", "put", number, "v")
    await cli("snapshot", "save", tmp_path / "whole")
    short = without("users", tmp_path / "whole", tmp_path / "short")
    told = await cli("snapshot", "verify", short)
    assert [row["keyspace"] for row in told if "group" in row] == ["default", "etcd"]
    assert told[2] == {"keyspace": "users", "left_out": "dropped while it was saved"}
    assert await restored(short) == ["default", "etcd"]
    assert not rows_of(USERS, tmp_path / "short.dir")
    await cli("put", "k", "v")
    await cli("snapshot", "save", tmp_path / "later", "--since", short)
    assert await restored(short, tmp_path / "later") == ["default", "etcd", *["users"] * 3]
    assert set(rows_of(USERS, tmp_path / "later.dir")) == set(USERS)
    await cli("snapshot", "save", tmp_path / "more", "--since", tmp_path / "whole")
    less = without("users", tmp_path / "more", tmp_path / "less")
    assert await restored(tmp_path / "whole", less) == ["default", "etcd"]
    assert not rows_of(USERS, tmp_path / "less.dir")
    await faced.close()


async def test_no_increment_takes_the_place_of_its_own_base(save: Save, tmp_path: Path) -> None:
    base, link = tmp_path / "base", tmp_path / "link"
    assert (await save(base)).exit_code == 0
    link.symlink_to(base)
    whole = base.read_bytes()
    draft = tmp_path / "next.part"
    draft.write_bytes(whole)
    for file, since in (
        (base, base),
        (link, base),
        (base, link),
        (tmp_path / "." / "base", base),
        (tmp_path / "next", draft),
    ):
        refused = await save(file, "--since", since)
        assert refused.exit_code != 0
        assert "name another" in refused.stderr
    assert base.read_bytes() == draft.read_bytes() == whole
    assert (await save(tmp_path / "more", "--since", base)).exit_code == 0


async def test_a_backup_takes_the_place_of_files_only(save: Save, tmp_path: Path) -> None:
    pipe, link, file, new = (tmp_path / name for name in ("pipe", "link", "file", "new"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    new.with_name("new.part").symlink_to(file)
    for place in (pipe, link, new):
        refused = await save(place)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "is no regular file" in refused.stderr
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert not file.exists()
    link.unlink()
    link.symlink_to(file)
    for _ in range(2):
        assert (await save(link)).exit_code == 0
        assert link.is_symlink()
        assert file.stat().st_size


async def test_a_backup_is_its_owner_s_and_one_save_s(save: Save, tmp_path: Path) -> None:
    file, draft = tmp_path / "file", tmp_path / "file.part"
    draft.write_bytes(b"of a save that was killed")
    draft.chmod(0o644)
    assert (await save(file)).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not draft.exists()
    whole = file.read_bytes()
    with draft.open("wb") as other:
        other.write(b"half")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        refused = await save(file)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "another save writes there" in refused.stderr
        assert draft.read_bytes() == b"half"
    assert file.read_bytes() == whole
    refused = await save(Path("-"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "name a file" in refused.stderr


async def test_a_backup_without_room_exits_1(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere, file = tmp_path / "none" / "file", tmp_path / "file"
    failed = await save(nowhere)
    assert (failed.exit_code, failed.stderr) == (1, f"nebula-cli: {nowhere}: No such file or directory\n")

    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(snapshot, "_receive", full)
    failed = await save(file)
    assert (failed.exit_code, failed.stderr) == (1, f"nebula-cli: {file}: No space left on device\n")
    assert not os.listdir(tmp_path)


async def test_a_revision_that_is_beyond_the_bound_already_is_kept(
    restore: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been raised to it, and have gone on."""
    monkeypatch.setattr(site, "MAX_REVISION", 1)
    assert (await restore(tmp_path / "kept")).exit_code == 0
    refused = await restore(tmp_path / "raised", "--bump-revision", 1)
    assert refused.exit_code == 2
    assert "by at most 0" in refused.stderr


async def test_a_file_that_is_refused_is_named(save: Save, restore: Restore, tmp_path: Path) -> None:
    cut, more, base = tmp_path / "cut", tmp_path / "more", tmp_path / "base"
    assert (await save(base)).exit_code == 0
    assert (await save(more, "--since", base)).exit_code == 0
    cut.write_bytes(base.read_bytes()[:-1])
    for file in (cut, more):
        arguments = ["snapshot", "restore", str(file), "--data-dir", str(tmp_path / "n1")]
        refused = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert refused.stderr.startswith(f"nebula-cli: {file}: ")


async def test_a_directory_without_a_name_is_not_the_current_one(
    restore: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `--data-dir "$UNSET"`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused = await restore("")
    assert (refused.exit_code, "data-dir (flag --data-dir): must not be empty" in refused.stderr) == (2, True)
    assert not os.listdir()


async def test_progress_is_told_in_shards(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    assert "saved 2 of 2 shards, " in (await save(tmp_path / "file")).stderr


@pytest.mark.parametrize("ends", [Unavailable("the node is lost"), KeyboardInterrupt()], ids=["node", "ctrl-c"])
async def test_what_ends_amid_it_is_begun_anew(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    snapshot_of = AsyncClient.snapshot

    async def dies(self: AsyncClient, request: SnapshotRequest) -> AsyncIterator[SnapshotResponse]:
        async for response in snapshot_of(self, request):
            yield response
            raise ends

    monkeypatch.setattr(AsyncClient, "snapshot", dies)
    failed = await save(tmp_path / "file")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("nebula-cli: stopped")
    assert "; nothing is saved: run the same command again\n" in failed.stderr
    assert not os.listdir(tmp_path)

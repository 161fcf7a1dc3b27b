"""`nebula-cli snapshot`, of a node in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli.main import main
from nebuladb.server import site
from nebuladb.server.site import MAX_REVISION
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

Restore = Callable[..., Awaitable[Result]]


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

    async def run(directory: Path, *flags: object) -> Result:
        return await cli("snapshot", "restore", file, "--data-dir", directory, *flags)

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
        assert not list(empty.iterdir())
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


async def test_a_revision_that_is_beyond_the_bound_already_is_kept(
    restore: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been raised to it, and have gone on."""
    monkeypatch.setattr(site, "MAX_REVISION", 1)
    assert (await restore(tmp_path / "kept")).exit_code == 0
    refused = await restore(tmp_path / "raised", "--bump-revision", 1)
    assert refused.exit_code == 2
    assert "by at most 0" in refused.stderr

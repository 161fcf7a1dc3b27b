"""What `nebula-cli` says where keys are placed by hash, against a node in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli.main import main
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """`nebula-cli` in the keyspace `users`, which has several shards by hash."""
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)

    async def cli(*arguments: str, keyspace: str = "users") -> Result:
        words = ["--endpoints", faced.address, "--keyspace", keyspace, *arguments]
        return await asyncio.to_thread(CliRunner().invoke, main, words, catch_exceptions=False)

    assert (await cli("keyspace", "create", "users", "--shards", "3")).exit_code == 0
    assert (await cli("keyspace", "create", "one", "--shards", "1")).exit_code == 0
    yield cli
    await faced.close()


async def test_load_is_refused_beforehand(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for words in (("load", str(tmp_path)), ("load", "--verify", str(tmp_path))):
        refused = await run(*words)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "--partitioning range` or `single`" in refused.stderr
        assert "to go on" not in refused.stderr
    assert (await run("scan")).stdout == ""
    assert (await run("load", str(tmp_path), keyspace="one")).exit_code == 0
    assert (await run("load", "--verify", str(tmp_path), keyspace="one")).exit_code == 0


async def test_a_range_is_not_deleted_and_the_refusal_says_what_to_do(run: Run) -> None:
    for key in ("a", "b"):
        assert (await run("put", key, "v")).exit_code == 0
    refused = await run("del", "--prefix", "")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "delete each by itself" in refused.stderr
    assert (await run("del", "a")).stdout == "1\n"
    assert (await run("put", "a", "v", keyspace="one")).exit_code == 0
    assert (await run("del", "--prefix", "", keyspace="one")).stdout == "1\n"


async def test_what_cannot_be_dropped(run: Run) -> None:
    for name in ("default", "etcd"):
        refused = await run("keyspace", "drop", name)
        assert refused.exit_code == 1
        assert "can be neither created nor dropped" in refused.stderr

"""`nebula-cli compact`, against a node in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli.main import main
from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError, TooManyRequests, UnknownOutcome
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

Run = Callable[..., Awaitable[Result]]
KEYS = 12


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """`nebula-cli`, at a node that has the keyspaces `users` (hash), `logs` (range) and `one`."""
    faced = Faced()
    await asyncio.wait_for(faced.open(), SECONDS)

    async def cli(*arguments: str) -> Result:
        words = ["--endpoints", faced.address, *arguments]
        return await asyncio.to_thread(CliRunner().invoke, main, words, catch_exceptions=False)

    async with AsyncClient([faced.address]) as client:
        await client.create_keyspace("users", shards=3)
        await client.create_keyspace("logs", "range", split_at=[b"m"])
        await client.create_keyspace("one", "single")
    for keyspace in ("users", "logs", "one"):
        async with AsyncClient([faced.address], keyspace=keyspace) as client:
            for number in range(KEYS):
                for value in (b"1", b"2"):
                    await client.put(b"%c%d" % (ord("a") + 2 * number, number), value)
    yield cli
    await faced.close()


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("keyspace", ["users", "logs", "one"])
async def test_every_shard_is_compacted_to_its_newest_revision(run: Run, keyspace: str) -> None:
    before = rows(await run("-o", "json", "keyspace", "describe", keyspace))
    done = await run("-o", "json", "--keyspace", keyspace, "compact")
    assert done.exit_code == 0, done.stderr
    shards = rows(done)
    assert [row["group"] for row in shards] == [row["group"] for row in before]
    assert {row["keyspace"] for row in shards} == {keyspace}
    assert all(row["compact_revision"] == row["revision"] and row["compacted"] for row in shards)
    # A shard begins at revision 1, and each put makes one.
    assert sum(row["revision"] - 1 for row in shards) == 2 * KEYS
    assert (await run("--keyspace", keyspace, "get", "a0")).stdout == "2\n"
    gone = await run("--keyspace", keyspace, "get", "a0", "--revision", "2")
    assert (gone.exit_code, "has been compacted" in gone.stderr) == (1, True)


async def test_what_is_compacted_already_is_no_error_without_a_revision(run: Run) -> None:
    first = rows(await run("-o", "json", "--keyspace", "users", "compact"))
    again = await run("-o", "json", "--keyspace", "users", "compact")
    assert (again.exit_code, again.stderr) == (0, "")
    assert rows(again) == [row | {"compacted": False} for row in first]


async def test_some_revisions_are_kept(run: Run) -> None:
    (row,) = rows(await run("-o", "json", "--keyspace", "one", "compact", "--keep", "5"))
    assert (row["compact_revision"], row["compacted"]) == (row["revision"] - 5, True)
    (row,) = rows(await run("-o", "json", "--keyspace", "one", "compact", "--keep", "99"))
    assert (row["compact_revision"], row["compacted"]) == (row["revision"] - 5, False), "more than there are"


async def test_one_shard_to_a_revision(run: Run) -> None:
    group = rows(await run("-o", "json", "keyspace", "describe", "logs"))[1]["group"]
    words = ("--keyspace", "logs", "compact", "--shard", str(group))
    answer = await run(*words, "3")
    assert answer.exit_code == 0, answer.stderr
    heads, line = answer.stdout.splitlines()
    assert heads.split() == ["GROUP", "KEYSPACE", "REVISION", "COMPACT", "REVISION", "COMPACTED"]
    assert line.split() == [str(group), "logs", "13", "3", "True"]
    again = await run(*words, "2")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == f"nebula-cli: shard {group}: revision 2 has been compacted; the oldest is 3\n"
    future = await run(*words, "14")
    assert (future.exit_code, future.stdout) == (1, "")
    assert future.stderr == f"nebula-cli: shard {group}: revision 14 has not happened yet; the newest is 13\n"
    (row,) = rows(await run("-o", "json", *words))
    assert (row["group"], row["compact_revision"]) == (group, 13)
    assert (await run("--keyspace", "one", "compact", "2")).exit_code == 0, "it has one shard only"


async def test_what_cannot_be_meant(run: Run) -> None:
    several = await run("--keyspace", "users", "compact", "3")
    assert (several.exit_code, several.stdout) == (2, "")
    assert "has 3 shards, each with revisions of its own: name one with --shard" in several.stderr
    assert (await run("--keyspace", "one", "compact", "3", "--keep", "1")).exit_code == 2
    assert (await run("--keyspace", "one", "compact", "0")).exit_code == 2
    unknown = await run("--keyspace", "users", "compact", "--shard", "2")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "keyspace 'users' has no shard 2; see `nebula-cli keyspace describe users`" in unknown.stderr
    assert (await run("--keyspace", "nowhere", "compact")).exit_code == 1
    assert all(row["compacted"] for row in rows(await run("-o", "json", "--keyspace", "users", "compact"))), "untouched"


async def test_a_shard_that_fails_keeps_none_from_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [row["group"] for row in rows(await run("-o", "json", "keyspace", "describe", "users"))]
    compact = AsyncClient.compact

    async def refused(self: AsyncClient, revision: int, *, group: int = 0) -> None:
        if group == groups[1]:
            raise TooManyRequests("too much to do")
        await compact(self, revision, group=group)

    monkeypatch.setattr(AsyncClient, "compact", refused)
    answer = await run("-o", "json", "--keyspace", "users", "compact")
    assert answer.exit_code == 1
    assert answer.stderr == f"nebula-cli: shard {groups[1]}: too much to do\n"
    assert [row["group"] for row in rows(answer)] == [groups[0], groups[2]]


@pytest.mark.parametrize("words", [(), ("3",)], ids=["newest", "revision"])
async def test_a_leader_that_dies_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """It was done, and nobody said so: without a REVISION it is asked once more."""
    compact = AsyncClient.compact
    answers: list[type[NebulaError]] = [UnknownOutcome]

    async def lost(self: AsyncClient, revision: int, *, group: int = 0) -> None:
        await compact(self, revision, group=group)
        if answers:
            raise answers.pop()("the leader may or may not have done it")

    monkeypatch.setattr(AsyncClient, "compact", lost)
    answer = await run("-o", "json", "--keyspace", "one", "compact", *words)
    if words:
        assert answer.exit_code == 1
        assert "have done it; run the same command again, which does no harm twice\n" in answer.stderr
    else:
        assert (answer.exit_code, answer.stderr) == (0, "")
        assert [row["compacted"] for row in rows(answer)] == [True]


async def test_it_may_have_been_done_before_it_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second try says was all that was said."""
    answers = [TooManyRequests("too much to do"), UnknownOutcome("nobody knows")]

    async def lost(_: AsyncClient, __: int, *, group: int = 0) -> None:
        raise answers.pop()

    monkeypatch.setattr(AsyncClient, "compact", lost)
    answer = await run("--keyspace", "one", "compact")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert ": it may have been done; asked once more: too much to do; run the same command again" in answer.stderr

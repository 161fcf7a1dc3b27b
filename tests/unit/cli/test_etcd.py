"""`nebula-cli etcd import`, from one node in memory, by its etcd face, into another."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest
from click.testing import CliRunner, Result

from nebuladb.cli import etcd as command
from nebuladb.cli import etcd_source
from nebuladb.cli.etcd_source import EtcdSource, Lease
from nebuladb.cli.main import main
from nebuladb.client import AsyncClient
from nebuladb.kv import txn
from nebuladb.pb.etcd import kv_pb2, lease_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS


class Pair:
    """Where it comes from, and where it goes."""

    def __init__(self) -> None:
        self.source, self.target = Faced(), Faced()

    async def run(self, *arguments: str, source: str = "") -> Result:
        """`nebula-cli … etcd import --from …`; `arguments` before a ``--`` go to the program."""
        ours, _, theirs = " ".join(arguments).partition("--- ")
        return await self.cli(*ours.split(), "etcd", "import", "--from", source or self.source.address, *theirs.split())

    async def cli(self, *arguments: str) -> Result:
        """`nebula-cli` against the target."""
        words = ["--endpoints", self.target.address, *arguments]
        return await asyncio.to_thread(CliRunner().invoke, main, words, catch_exceptions=False)

    async def grant(self, lease: int, ttl: int = 60) -> None:
        call = self.source.channel.unary_unary(
            "/etcdserverpb.Lease/LeaseGrant",
            lease_pb2.LeaseGrantRequest.SerializeToString,
            lease_pb2.LeaseGrantResponse.FromString,
        )
        await call(lease_pb2.LeaseGrantRequest(ID=lease, TTL=ttl), timeout=SECONDS)

    async def content(self, faced: Faced) -> dict[bytes, tuple[bytes, int]]:
        """Key → value and lease, by pages that fit."""
        found: dict[bytes, tuple[bytes, int]] = {}
        start = b"\0"
        while True:
            page = await faced.range(start, b"\0", limit=8)
            found |= {kv.key: (kv.value, kv.lease) for kv in page.kvs}
            if not page.more:
                return found
            start = page.kvs[-1].key + b"\0"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    pair.source.node.founding = pair.source.node.founding._replace(cluster=8)  # theirs, not ours
    for faced in (pair.source, pair.target):
        await asyncio.wait_for(faced.open(), SECONDS)
    yield pair
    for faced in (pair.source, pair.target):
        await faced.close()


def counts(result: Result) -> dict[str, int]:
    return {name: int(value) for name, value in (part.split("=") for part in result.stdout.split())}


async def test_everything_comes_over(pair: Pair) -> None:
    """More keys than a page or a transaction has, raw bytes, empty values, and leases with their ids."""
    for number in range(300):
        await pair.source.set(b"k%03d" % number, b"%d" % number)
    await pair.source.set(b"\0\xff\n", os.urandom(300_000))
    await pair.source.set(b"empty", b"")
    await pair.grant(77)
    await pair.grant(78)
    await pair.source.set(b"leased", b"x", lease=77)
    result = await pair.run()
    assert result.exit_code == 0, result.stderr
    found = counts(result)
    assert (found["keys"], found["written"], found["leases"], found["expired"]) == (303, 303, 2, 0)
    assert found["source_revision"] == (await pair.source.range(b"x")).header.revision
    assert found["revision"] == (await pair.target.range(b"x")).header.revision
    assert await pair.content(pair.target) == await pair.content(pair.source)
    async with AsyncClient([pair.target.address], keyspace="etcd") as client:
        assert await client.leases() == (77, 78)
        assert (await client.time_to_live(77, keys=True)).keys == (b"leased",)


async def test_what_is_not_empty_stays_as_it_is(pair: Pair) -> None:
    await pair.source.set(b"a", b"theirs")
    await pair.target.set(b"b", b"ours")
    before = await pair.content(pair.target)
    result = await pair.run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--merge" in result.stderr
    assert "--force" in result.stderr
    assert await pair.content(pair.target) == before


async def test_merge_writes_what_is_missing_and_nothing_else(pair: Pair) -> None:
    await pair.grant(77)
    for number in range(10):
        await pair.source.set(b"%d" % number, b"v", lease=77 * (number % 2))
    assert (await pair.run()).exit_code == 0
    await pair.target.set(b"3", b"other", lease=77)
    await pair.target.set(b"4", b"v", lease=77)
    await pair.target.set(b"ours", b"stays")
    await pair.target.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"5"))
    found = counts(await pair.run("---", "--merge"))
    assert (found["keys"], found["written"], found["same"], found["leases"]) == (10, 3, 7, 1)
    assert await pair.content(pair.target) == {**await pair.content(pair.source), b"ours": (b"stays", 0)}
    revision = (await pair.target.range(b"x")).header.revision
    found = counts(await pair.run("---", "--merge"))
    assert (found["written"], found["same"], found["revision"]) == (0, 10, revision)


async def test_merge_writes_over_values_too_large_for_one_transaction(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stopped there, each time."""
    for number in range(20):
        await pair.source.set(b"%02d" % number, b"v")
        await pair.target.set(b"%02d" % number, bytes(10_000))
    monkeypatch.setattr(txn, "MAX_TXN_BYTES", 50_000)
    result = await pair.run("---", "--merge")
    assert result.exit_code == 0, result.stderr
    assert counts(result)["written"] == 20
    assert await pair.content(pair.target) == await pair.content(pair.source)


@pytest.mark.parametrize("lease", [77, 7_587_894_523_421_165_571, -5], ids=["small", "drawn by etcd", "negative"])
async def test_force_deletes_first(pair: Pair, lease: int) -> None:
    """Leases with the ids that they came with, which name no shard of ours."""
    await pair.grant(lease)
    await pair.source.set(b"a", b"v", lease=lease)
    result = await pair.run()
    assert result.exit_code == 0, result.stderr
    await pair.target.set(b"b", b"ours")
    result = await pair.run("---", "--force")
    assert result.exit_code == 0, result.stderr
    assert await pair.content(pair.target) == await pair.content(pair.source)


async def test_what_it_would_delete_is_not_what_it_reads(pair: Pair) -> None:
    lease = (await pair.cli("--keyspace", "etcd", "lease", "grant", "60")).stdout.strip()
    await pair.target.set(b"a", b"v", lease=int(lease))
    for words in ("--force", "--merge", ""):
        result = await pair.run("---", words, source=pair.target.address)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "this very cluster" in result.stderr
    assert await pair.content(pair.target) == {b"a": (b"v", int(lease))}
    await pair.cli("keyspace", "create", "copy", "--partitioning", "single")
    result = await pair.run("--keyspace", "copy", source=pair.target.address)
    assert (result.exit_code, counts(result)["written"]) == (0, 1), result.stderr


async def test_a_lease_may_have_a_negative_id(pair: Pair) -> None:
    await pair.grant(-5)
    assert (await pair.run()).exit_code == 0
    assert (await pair.cli("--keyspace", "etcd", "put", "k", "v", "--lease", "-5")).exit_code == 0
    assert (await pair.cli("--keyspace", "etcd", "lease", "ttl", "--keys", "--", "-5")).stdout.endswith("\nk\n")


async def test_another_keyspace(pair: Pair) -> None:
    await pair.source.set(b"a", b"v")
    result = await pair.run("--keyspace", "default")
    assert result.exit_code == 1, "the node's own test write is there"
    assert "'default' is not empty" in result.stderr
    result = await pair.run("--keyspace", "none")
    assert result.exit_code == 1
    assert "none" in result.stderr


async def test_keys_whose_lease_ended_meanwhile_are_counted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before their lease was asked for, and after it was granted to us."""
    for lease in (77, 78):
        await pair.grant(lease)
    for number in range(6):
        await pair.source.set(b"%d" % number, b"v", lease=(0, 77, 78)[number % 3])

    async def leases(self: EtcdSource) -> list[Lease]:
        return [Lease(77, 60)]

    async def grant(self: command.Importer) -> set[int]:
        return {77}

    monkeypatch.setattr(EtcdSource, "leases", leases)
    found = counts(await pair.run())
    assert (found["keys"], found["written"], found["expired"], found["leases"]) == (6, 4, 2, 1)
    monkeypatch.setattr(command.Importer, "_grant", grant)
    result = await pair.run("---", "--force")
    found = counts(result)
    assert (found["keys"], found["written"], found["expired"]) == (6, 2, 4)


async def test_pages_that_are_too_large_are_asked_for_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_source, "MAX_MESSAGE", 1 << 20)
    for number in range(12):
        await pair.source.set(b"a%02d" % number, b"")
    for number in range(6):
        await pair.source.set(b"b%02d" % number, os.urandom(200_000))
    result = await pair.run()
    assert result.exit_code == 0, result.stderr
    assert await pair.content(pair.target) == await pair.content(pair.source)


async def test_an_interruption_says_how_to_go_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_source, "FIRST_LIMIT", 1)
    for number in range(20):
        await pair.source.set(b"%02d" % number)
    put = command.Importer._put

    async def compacts(self: command.Importer, kvs: object) -> None:
        """Revision and all: the source loses it after the first page."""
        await put(self, kvs)  # type: ignore[arg-type]
        if self.tally["written"] == 1:
            self._source.revision = 1

    monkeypatch.setattr(command.Importer, "_put", compacts)
    await pair.source.call("Compact", kv_pb2.CompactionRequest(revision=20))
    result = await pair.run()
    assert result.exit_code == 1
    assert "compacted" in result.stderr
    assert "run the command again with --merge" in result.stderr
    assert counts(result)["written"] == 1
    monkeypatch.undo()
    found = counts(await pair.run("---", "--merge"))
    assert (found["written"], found["same"]) == (19, 1)
    assert await pair.content(pair.target) == await pair.content(pair.source)


async def test_what_cannot_be_asked_for(pair: Pair) -> None:
    nobody = await pair.run(source="127.0.0.1:1")
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert "etcd at 127.0.0.1:1" in nobody.stderr
    for wrong in ("--merge --force", "--cert a.pem"):
        assert (await pair.run("---", wrong)).exit_code == 2
    missing = await pair.run("---", "--cacert", "/nowhere/ca.pem")
    assert missing.exit_code == 2
    assert "/nowhere/ca.pem" in missing.stderr
    stranger = await pair.run("---", "--user", "root:secret")
    assert stranger.exit_code == 1
    assert "authentication is not enabled" in stranger.stderr


async def test_nebula_cli_and_etcds_clients_see_the_same_keys(pair: Pair) -> None:
    """The keyspace `etcd` is one like any other."""
    target = pair.target
    put = await pair.cli("--keyspace", "etcd", "-o", "json", "put", "ours", "1")
    found = await target.range(b"ours")
    assert (found.kvs[0].value, found.kvs[0].mod_revision) == (b"1", json.loads(put.stdout)["revision"])
    await target.set(b"theirs", b"2")
    assert (await pair.cli("--keyspace", "etcd", "get", "theirs")).stdout == "2\n"
    assert (await pair.cli("--keyspace", "etcd", "scan")).stdout == "ours\t1\ntheirs\t2\n"
    lease = (await pair.cli("--keyspace", "etcd", "lease", "grant", "60")).stdout.strip()
    assert (await pair.cli("--keyspace", "etcd", "put", "ours", "3", "--lease", lease)).stdout == "OK\n"
    assert (await target.range(b"ours")).kvs[0].lease == int(lease)
    watched = await pair.cli("--keyspace", "etcd", "watch", "ours", "--from-revision", "2", "--count", "2")
    assert watched.stdout == "PUT\tours\t1\nPUT\tours\t3\n"
    assert (await pair.cli("--keyspace", "etcd", "del", "--prefix", "")).stdout == "2\n"
    assert (await target.range(b"\0", b"\0")).count == 0
    assert (await pair.cli("get", "theirs")).exit_code == 1, "in `default` there is none"

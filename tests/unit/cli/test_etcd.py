"""`nebula-cli etcd import`, from one node in memory, by its etcd face, into another."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner, Result
from google.protobuf.message import Message
from grpc.aio import Metadata

from nebuladb.api.etcd.requests import ENTRY_BYTES
from nebuladb.cli import etcd as command
from nebuladb.cli import etcd_source
from nebuladb.cli.etcd_leases import Leases
from nebuladb.cli.etcd_source import EtcdSource, Lease
from nebuladb.cli.main import main
from nebuladb.client import AsyncClient
from nebuladb.errors import LeaseExists, Unavailable
from nebuladb.kv import txn
from nebuladb.kv.limits import MAX_REQUEST_BYTES
from nebuladb.pb.etcd import auth_pb2, kv_pb2, lease_pb2
from nebuladb.pb.etcd import maintenance_pb2 as pb
from nebuladb.pb.etcd.mvcc_pb2 import KeyValue
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


async def test_values_as_large_as_etcd_lets_them_be(pair: Pair) -> None:
    """With what a transaction of ours says beside them they were too large for a request, and ended the import."""
    await pair.grant(77)
    for key, lease in ((b"a", 0), (b"b", 77)):
        request = kv_pb2.PutRequest(key=key, value=bytes(MAX_REQUEST_BYTES - 64), lease=lease)
        request.value += bytes(MAX_REQUEST_BYTES - ENTRY_BYTES - request.ByteSize())
        await pair.source.call("Put", request)
    result = await pair.run()
    assert result.exit_code == 0, result.stderr
    assert counts(result)["written"] == 2
    assert await pair.content(pair.target) == await pair.content(pair.source)


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


async def test_a_cluster_without_space_says_so_before_anything_is_deleted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE", 1.0)
    await pair.source.set(b"a", b"theirs")
    await pair.target.set(b"b", b"ours")
    full = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=7, alarm=pb.NOSPACE)
    alarm: Any = pair.target.channel.unary_unary("/etcdserverpb.Maintenance/Alarm")
    await alarm(full.SerializeToString(), timeout=SECONDS)
    result = await pair.run("--timeout", "1", "---", "--force")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("nebula-cli: the alarm NOSPACE is raised")
    assert await pair.content(pair.target) == {b"b": (b"ours", 0)}


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
    """Before their lease was asked for."""
    for lease in (77, 78):
        await pair.grant(lease)
    for number in range(6):
        await pair.source.set(b"%d" % number, b"v", lease=(0, 77, 78)[number % 3])

    async def leases(self: EtcdSource) -> list[Lease]:
        return [Lease(77, 60, 60)]

    monkeypatch.setattr(EtcdSource, "leases", leases)
    found = counts(await pair.run())
    assert (found["keys"], found["written"], found["expired"], found["leases"]) == (6, 4, 2, 1)


@pytest.mark.parametrize("page", [1, 2], ids=["before its keys", "behind one of them"])
async def test_a_lease_that_ends_here_meanwhile_is_no_success(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """It exited 0 with ``expired=0``, or counted as expired what etcd has still."""
    await pair.grant(77)
    for number in range(4):
        await pair.source.set(b"%d" % number, b"v", lease=77 * (number > 0))
    monkeypatch.setattr(etcd_source, "FIRST_LIMIT", page)
    monkeypatch.setattr(etcd_source, "MAX_LIMIT", page)
    write = command.Importer._write

    async def ends(self: command.Importer, batch: Sequence[KeyValue], leases: Leases) -> None:
        await write(self, batch, leases)
        if batch[0].key == b"0":
            await self._session.revoke_lease(77)

    monkeypatch.setattr(command.Importer, "_write", ends)
    result = await pair.run()
    found = counts(result)
    assert (result.exit_code, found["keys"], found["expired"], found["lost"]) == (1, 4, 0, 3)
    assert "leases ended here before all was copied" in result.stderr
    assert "run the command again with --merge" in result.stderr
    assert await pair.content(pair.target) == {b"0": (b"v", 0)}
    monkeypatch.undo()
    found = counts(await pair.run("---", "--merge"))
    assert (found["written"], found["same"], found["lost"]) == (3, 1, 0)
    assert await pair.content(pair.target) == await pair.content(pair.source)


async def pass_time(faced: Faced, seconds: int) -> None:
    """Time that its leases feel, and the writes by which they end. What is asked next sees all of it.

    An entry tells the state machine what time it is; on a busy machine the ticks outrun those that the node proposes.
    """
    for _ in range(seconds * 20):
        await faced.tick()
    await faced.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"none"))


async def test_merge_renews_what_was_imported_before(pair: Pair) -> None:
    """Its holder renews it in etcd only: here it ran out, with its keys."""
    await pair.grant(77, ttl=30)
    await pair.source.set(b"a", b"v", lease=77)
    await pass_time(pair.source, 20)
    async with AsyncClient([pair.target.address], keyspace="etcd") as client:
        assert (await pair.run()).exit_code == 0
        info = await client.time_to_live(77)
        assert (info.ttl > 20, info.granted_ttl) == (True, 30), "what it was granted, not what it had left"
        await pass_time(pair.target, 20)
        assert (await client.time_to_live(77)).ttl <= 10
        result = await pair.run("---", "--merge")
        assert (result.exit_code, counts(result)["same"]) == (0, 1), result.stderr
        assert (await client.time_to_live(77)).ttl > 20


async def test_merge_refuses_a_lease_that_would_end_before_etcds(pair: Pair) -> None:
    await pair.grant(77, ttl=60)
    await pair.source.set(b"a", b"v", lease=77)
    async with AsyncClient([pair.target.address], keyspace="etcd") as client, client.session() as session:
        await session.grant_lease(10, lease=77)
    result = await pair.run("---", "--merge")
    assert result.exit_code == 1
    assert "lease 77 is here with a TTL of 10 s, and has " in result.stderr
    assert (await pair.cli("--keyspace", "etcd", "lease", "revoke", "--", "77")).exit_code == 0
    assert (await pair.run("---", "--merge")).exit_code == 0
    assert await pair.content(pair.target) == await pair.content(pair.source)


async def test_leases_are_kept_until_all_is_copied(pair: Pair) -> None:
    """And one that ends between the two questions of a merge is granted anew."""
    target, time = pair.target, 0.0
    lease = Lease(77, 10, 10)
    async with AsyncClient([target.address], keyspace="etcd") as client, client.session() as session:
        leases = Leases(client, session, merge=True, clock=lambda: time)
        await leases.grant([lease])
        for _ in range(5):
            time += 4
            await pass_time(target, 4)
            await leases.renew_due()
        assert (await client.time_to_live(77)).ttl > 5
        exists = session.grant_lease

        async def once(ttl: int, *, lease: int) -> object:
            session.grant_lease = exists  # type: ignore[method-assign]
            await session.revoke_lease(lease)
            raise LeaseExists("it was there")

        session.grant_lease = once  # type: ignore[assignment,method-assign]
        await leases.grant([lease])
        assert (await client.time_to_live(77)).ttl > 5
        await session.revoke_lease(77)
        await leases.finish()
        assert leases.lost == {77}
        assert 77 in leases


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


async def test_ctrl_c_says_how_to_go_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pressed(self: command.Importer, *_: object) -> None:
        raise KeyboardInterrupt

    await pair.source.set(b"a")
    monkeypatch.setattr(command.Importer, "_write", pressed)
    for words, again in (("", "run the command again with --merge"), ("--force", "run the same command again")):
        result = await pair.run("---", words)
        assert (result.exit_code, counts(result)["keys"]) == (1, 0)
        assert f"nebula-cli: stopped; what was copied stays: {again} to go on\n" in result.stderr


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


class Guarded:
    """Stands for a channel to an etcd that knows users: each of its tokens is good for two requests."""

    def __init__(self, code: grpc.StatusCode, says: str) -> None:
        self._error = grpc.aio.AioRpcError(code, Metadata(), Metadata(), says)
        self.tokens = self.left = 0
        self.users = {"ann"}

    def unary_unary(self, method: str, *_: object) -> Callable[..., Awaitable[Message]]:
        async def call(request: Message, *, timeout: float, metadata: Sequence[tuple[str, str]]) -> Message:
            if isinstance(request, auth_pb2.AuthenticateRequest):
                if request.name not in self.users:
                    raise grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, Metadata(), Metadata(), "who?")
                self.tokens, self.left = self.tokens + 1, 2
                return auth_pb2.AuthenticateResponse(token=str(self.tokens))
            self.left -= 1
            if self.left < 0 or tuple(metadata) != (("token", str(self.tokens)),):
                raise self._error
            return kv_pb2.RangeResponse(count=3, more=True, kvs=[KeyValue(key=b"a")])

        return call


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token"),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old"),
    ],
)
async def test_a_token_that_is_over_is_no_end(code: grpc.StatusCode, says: str) -> None:
    """An import that took longer than a token lasts stopped there, with --merge at the same place again."""
    etcd = Guarded(code, says)
    source = EtcdSource("127.0.0.1:1", etcd_source.Security(user="ann:secret"), SECONDS)
    source._channel = etcd  # type: ignore[assignment]
    await source.open()
    pages = source.pages()
    for _ in range(5):
        await anext(pages)
    assert etcd.tokens == 3
    etcd.users.clear()
    with pytest.raises(Unavailable, match="who"):
        await anext(pages)


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

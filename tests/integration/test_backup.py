"""Backups of a real cluster: saved while it serves, verified, restored into new ones; and recovery from a survivor."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nebuladb.cli.main import main as nebula_cli
from nebuladb.client import AsyncClient, Client
from nebuladb.ids import DEFAULT_GROUP, Generation, GroupId
from nebuladb.kv.hashing import HashJob, hash_spans
from nebuladb.kv.rows import Keys
from nebuladb.server.verify import verify
from nebuladb.storage.rocks import RocksEngine
from tests.integration.cluster import Cluster

KEYS = 2_000
BUMP = 1_000_000
GROUPS = (2, 4, 5, 6, 7)
"""`default` and the four of `users`. `etcd` has leases, so entries that carry the time change its state always."""
KEYSPACES = ("default", "etcd", "users")


def cli(*arguments: str | Path, fails: bool = False) -> str:
    result = CliRunner().invoke(nebula_cli, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) is fails, result.output + result.stderr
    return result.stderr if fails else result.stdout


def rows(*arguments: str | Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in cli("-o", "json", *arguments).splitlines()]


def nebulad(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nebuladb.server.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def hashes(cluster: Cluster) -> dict[int, bytes]:
    """Each shard's, at an index behind which nothing is written."""
    async with AsyncClient(cluster.endpoints, timeout=20.0) as client:
        return {group: (await client.state_hash(group)).hash for group in GROUPS}


def offline_hash(directory: Path, group: int) -> bytes:
    """Of the state as it lies in a directory that nobody runs on."""
    engine = RocksEngine.open_data(directory / "data")
    keys = Keys(GroupId(group), Generation(1))
    job = HashJob(0, engine.snapshot(hash_spans(keys)), keys, lambda row: False)
    while (digest := job.step(1_000)) is None:
        pass
    engine.close()
    return digest


async def write(cluster: Cluster, name: str) -> None:
    async with AsyncClient(cluster.endpoints, timeout=20.0) as client:
        await client.batch({b"%s/%d" % (name.encode(), number): b"v" * 100 for number in range(KEYS)})
        await client.delete(b"%s/5" % name.encode())
    async with AsyncClient(cluster.endpoints, keyspace="etcd", timeout=20.0) as etcd:
        lease = await etcd.grant_lease(10_000)
        await etcd.put(b"leased", name.encode(), lease=lease.id)
    async with AsyncClient(cluster.endpoints, keyspace="users", timeout=20.0) as users:
        await users.batch({b"%s/%d" % (name.encode(), number): b"u" * 50 for number in range(KEYS)})


async def content(endpoints: list[str], keyspace: str) -> dict[bytes, tuple[bytes, int]]:
    async with AsyncClient(endpoints, keyspace=keyspace, timeout=20.0) as client:
        return {row.key: (row.value, row.mod_revision) async for row in client.scan()}


def addresses(cluster: Cluster) -> str:
    return ",".join(f"{member.config.name}={member.config.peer_addr}" for member in cluster.members)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A full backup, one on top of it, and what the cluster held then."""
    directory = tmp_path_factory.mktemp("source")
    full, more = directory / "full.snap", directory / "more.snap"
    with Cluster(directory / "cluster") as cluster:
        cluster.start()
        cluster.wait_ready()
        endpoints = ",".join(cluster.endpoints)
        cli("--endpoints", endpoints, "keyspace", "create", "users", "--shards", "4")
        asyncio.run(write(cluster, "first"))
        saved = rows("--endpoints", cluster.endpoints[2], "snapshot", "save", full)
        asyncio.run(write(cluster, "second"))
        found = asyncio.run(hashes(cluster))
        added = rows("--endpoints", cluster.endpoints[1], "snapshot", "save", more, "--since", full)
        held = {name: asyncio.run(content(cluster.endpoints, name)) for name in KEYSPACES}
    return {"full": full, "more": more, "saved": saved, "added": added, "hashes": found, "held": held}


def test_a_backup_says_what_is_in_it_and_one_on_top_of_it_is_smaller(source: dict[str, object]) -> None:
    full, more = source["full"], source["more"]
    assert isinstance(full, Path)
    assert isinstance(more, Path)
    assert rows("snapshot", "verify", full) == source["saved"]
    *shards, whole = rows("snapshot", "verify", more)
    assert whole["since"] == rows("snapshot", "verify", full)[-1]["name"]
    assert all(shard["since_revision"] for shard in shards)
    assert whole["keys"] == 4 * KEYS - 2 + 1
    assert more.stat().st_size < full.stat().st_size * 1.2


def test_a_damaged_backup_is_found(source: dict[str, object], tmp_path: Path) -> None:
    full = source["full"]
    assert isinstance(full, Path)
    whole = full.read_bytes()
    for position in (3, 40, len(whole) // 2, len(whole) - 1):
        damaged = tmp_path / "damaged.snap"
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert "damaged.snap" in cli("snapshot", "verify", damaged, fails=True)
    (tmp_path / "short.snap").write_bytes(whole[:-50])
    assert "cut short" in cli("snapshot", "verify", tmp_path / "short.snap", fails=True)


def test_a_restored_cluster_of_one_has_the_same_state(source: dict[str, object], tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        without = cli("snapshot", "restore", source["more"], "--data-dir", tmp_path / "x", fails=True)  # type: ignore[arg-type]
        assert "doesn't build on" in without
        target = tmp_path / "restored"
        where = ("--name", "n1", "--initial-cluster", addresses(cluster))
        target.mkdir()
        given_away(target)
        cli("snapshot", "restore", source["full"], source["more"], "--data-dir", target, *where)  # type: ignore[arg-type]
        assert [finding for finding in verify(target) if finding.problem] == []
        assert_one_owner(target)
        wanted = source["hashes"]
        assert isinstance(wanted, dict)
        assert {group: offline_hash(target, group) for group in GROUPS} == wanted
        move(target, cluster, 0)
        cluster.start()
        cluster.wait_ready()
        for keyspace, held in source["held"].items():  # type: ignore[attr-defined]
            assert asyncio.run(content(cluster.endpoints, keyspace)) == held
        with Client(cluster.endpoints) as client:
            assert client.put(b"new", b"v").revision > 0
        cli("--endpoints", cluster.endpoints[0], "keyspace", "create", "later", "--shards", "2")
        cli("--endpoints", cluster.endpoints[0], "keyspace", "drop", "users")


def test_a_restored_cluster_of_three_with_revisions_bumped(source: dict[str, object], tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        for node, member in enumerate(cluster.members):
            where = ("--name", member.config.name, "--initial-cluster", addresses(cluster), "--bump-revision", BUMP)
            target = tmp_path / f"restored{node}"
            arguments = ["snapshot", "restore", source["full"], source["more"], "--data-dir", target, *map(str, where)]
            cli(*arguments, "--mark-compacted")  # type: ignore[arg-type]
            move(target, cluster, node)
        cluster.start()
        cluster.wait_ready()
        for keyspace, held in source["held"].items():  # type: ignore[attr-defined]
            found = asyncio.run(content(cluster.endpoints, keyspace))
            assert found == held
        with Client(cluster.endpoints) as client:
            assert client.put(b"new", b"v").revision > BUMP
        cli("--endpoints", ",".join(cluster.endpoints), "check")


def test_a_survivor_becomes_a_cluster_of_one(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.wait_ready()
        cli("--endpoints", ",".join(cluster.endpoints), "keyspace", "create", "users", "--shards", "4")
        asyncio.run(write(cluster, "first"))
        held = asyncio.run(content(cluster.endpoints, "default"))
        cluster.kill(0, 1, 2)
        survivor = cluster.data_dir(2)
        given_away(survivor)
        refused = nebulad("recover", "--data-dir", survivor)
        assert refused.returncode == 2
        assert "are LOST" in refused.stderr
        done = nebulad("recover", "--data-dir", survivor, "--i-accept-data-loss")
        assert done.returncode == 0, done.stderr
        assert f"shard {DEFAULT_GROUP}: " in done.stdout
        assert_one_owner(survivor)
        assert [finding for finding in verify(survivor) if finding.problem] == []
        again = nebulad("recover", "--data-dir", survivor, "--i-accept-data-loss")
        assert again.returncode == 2
        cluster.start(2)
        cluster.wait_ready(2)
        found = asyncio.run(content([cluster.endpoints[2]], "default"))
        missing = held.keys() - found.keys()
        assert len(missing) < KEYS, "a survivor has nearly all"
        with Client([cluster.endpoints[2]]) as client:
            client.put(b"new", b"v")
        # Those that were thought gone come back: they are another cluster now, and have a majority of it.
        cluster.start(0, 1)
        cluster.wait_ready(0, 1)
        with Client(cluster.endpoints[:2]) as client:
            assert client.get(b"new") is None
        assert cluster.ready(2)


def given_away(path: Path) -> None:
    """Make it another user's, with all in it, where we are root."""
    if os.geteuid() == 0:
        for one in (path, *path.rglob("*")):
            os.chown(one, 65534, 65534)


def assert_one_owner(path: Path) -> None:
    """Nothing in it is root's if it isn't: the node that runs as its owner couldn't use that."""
    assert {one.stat().st_uid for one in path.rglob("*")} == {path.stat().st_uid}


def move(source: Path, cluster: Cluster, node: int) -> None:
    """Put a restored directory where the node looks for its own, beside its settings."""
    for path in source.iterdir():
        path.rename(cluster.data_dir(node) / path.name)

"""Keyspaces as a user makes them, and a short campaign of creating and dropping them under kills."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nebuladb.client import AsyncClient, methods
from nebuladb.errors import InvalidArgument, KeyspaceExists, KeyspaceNotFound, NebulaError, SessionExpired
from nebuladb.pb.nebula.v1 import keyspace_pb2
from tests.integration import keyspaces
from tests.integration.cluster import Cluster

ROUNDS = 2
SEED = 3


def cli(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NEBULA_ENDPOINTS": ",".join(cluster.endpoints)}
    command = [sys.executable, "-c", "from nebuladb.cli.main import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


async def test_a_keyspace_serves_on_every_node_at_once_and_is_gone_at_once(cluster: Cluster) -> None:
    async with AsyncClient(cluster.endpoints) as client:
        info = await client.create_keyspace("at-once", shards=6)
        assert [shard.start_slot for shard in info.shards] == [65536 * place // 6 for place in range(6)]
        assert await client.create_keyspace("at-once", shards=6) == info, "idempotent"
        with pytest.raises(KeyspaceExists):
            await client.create_keyspace("at-once", shards=7)
        for number, address in enumerate(cluster.endpoints):
            async with AsyncClient([address], keyspace="at-once") as one:
                await one.put(b"%d" % number, b"v")
                assert [row.key async for row in one.scan()] == [b"%d" % i for i in range(number + 1)]
        leaders = Counter(leader for _, leader in await client.shards("at-once"))
        assert sorted(leaders.values()) == [2, 2, 2]
        assert await client.drop_keyspace("at-once")
        assert not await client.drop_keyspace("at-once"), "idempotent"
        for address in cluster.endpoints:
            async with AsyncClient([address], keyspace="at-once") as one:
                with pytest.raises(KeyspaceNotFound):
                    await one.put(b"k", b"v")


async def test_a_session_finds_a_keyspace_that_was_made_anew(cluster: Cluster) -> None:
    async with AsyncClient(cluster.endpoints) as client, AsyncClient(cluster.endpoints, keyspace="anew") as user:
        await client.create_keyspace("anew", "range", split_at=[b"m"])
        async with user.session() as session:
            await session.put(b"a", b"1")
            await client.drop_keyspace("anew")
            await client.create_keyspace("anew", "range", split_at=[b"m"])
            # The old shards' numbers mean nothing to the new ones: the first write says so, those after it go well.
            with pytest.raises(SessionExpired):
                await session.put(b"a", b"2")
            await session.put(b"a", b"3")
        found = await user.get(b"a")
        assert found is not None
        assert found.value == b"3"
        await client.drop_keyspace("anew")


async def test_a_session_of_the_keyspace_before_is_nobodys_in_the_new_one(cluster: Cluster) -> None:
    """Had they the same id, one client would get the other's answers for writes that were never made."""
    async with AsyncClient(cluster.endpoints, keyspace="twice") as old, AsyncClient(
        cluster.endpoints, keyspace="twice"
    ) as new:  # fmt: skip
        await old.create_keyspace("twice", shards=2)
        async with old.session() as before:
            await before.put(b"k", b"1")
            await new.drop_keyspace("twice")
            await new.create_keyspace("twice", shards=2)
            async with new.session() as after:
                await after.put(b"k", b"2")
                with pytest.raises(SessionExpired):
                    await before.put(b"k", b"of before")
                await after.put(b"k", b"3")
                found = await new.get(b"k")
                assert found is not None
                assert found.value == b"3"
        await new.drop_keyspace("twice")


@pytest.mark.parametrize("partitioning", ["hash", "single"])
async def test_a_scan_doesnt_go_on_in_another_keyspace_of_its_name(cluster: Cluster, partitioning: str) -> None:
    how = {"shards": 2} if partitioning == "hash" else {}
    async with AsyncClient(cluster.endpoints, keyspace="rest") as client:
        await client.create_keyspace("rest", partitioning, **how)  # type: ignore[arg-type]
        for number in range(40):
            await client.put(b"%02d" % number, b"old" * 20_000)
        rows = client.scan(page_size=1)
        found = [(await anext(rows)).value[:3] for _ in range(3)]
        await client.drop_keyspace("rest")
        await client.create_keyspace("rest", partitioning, **how)  # type: ignore[arg-type]
        for number in range(40):
            await client.put(b"%02d" % number, b"new")
        with pytest.raises(NebulaError):
            found += [row.value[:3] async for row in rows]
        assert b"new" not in found
        await client.drop_keyspace("rest")


async def test_a_repeated_drop_leaves_another_keyspace_of_the_name_alone(cluster: Cluster) -> None:
    async with AsyncClient(cluster.endpoints, keyspace="again") as client:
        first = min(shard.group for shard in (await client.create_keyspace("again", shards=2)).shards)
        request = keyspace_pb2.KeyspaceDropRequest(name="again", group=first)
        assert (await client._transport.call(methods.KEYSPACE_DROP, request, timeout=30)).dropped
        await client.create_keyspace("again", shards=2)
        await client.put(b"k", b"of the new one")
        assert (await client._transport.call(methods.KEYSPACE_DROP, request, timeout=30)).dropped, "the one it means is"
        assert await client.get(b"k") is not None
        assert await client.drop_keyspace("again")


async def test_a_lease_has_an_id_by_which_its_shard_is_found(cluster: Cluster) -> None:
    async with AsyncClient(cluster.endpoints, keyspace="leased") as client:
        await client.create_keyspace("leased", shards=2)
        with pytest.raises(InvalidArgument, match="give none"):
            await client.grant_lease(60, key=b"k", lease=4242)
        granted = (await client.grant_lease(60, key=b"k")).id
        await client.revoke_lease(granted)
        assert (await client.grant_lease(60, key=b"k", lease=granted)).id == granted
        await client.drop_keyspace("leased")


async def test_a_watch_ends_with_its_keyspace(cluster: Cluster) -> None:
    async with AsyncClient(cluster.endpoints) as client, AsyncClient(cluster.endpoints, keyspace="watched") as user:
        await client.create_keyspace("watched", shards=2)
        await user.put(b"k", b"v")
        events = user.watch(b"k", start_revision=1)
        assert (await anext(events)).kv.value == b"v"
        await client.drop_keyspace("watched")
        with pytest.raises(KeyspaceNotFound):
            await anext(events)


def test_the_command_line(cluster: Cluster) -> None:
    assert cli(cluster, "keyspace", "create", "cli", "--partitioning", "range", "--split-at", "m").stdout == "OK\n"
    described = cli(cluster, "-o", "json", "keyspace", "describe", "cli")
    assert len(described.stdout.splitlines()) == 2
    assert "cli" in cli(cluster, "keyspace", "list").stdout
    other = cli(cluster, "keyspace", "create", "cli", "--partitioning", "single")
    assert (other.returncode, other.stdout) == (1, "")
    assert "created otherwise" in other.stderr
    assert cli(cluster, "keyspace", "create", "Cli").returncode == 1
    assert cli(cluster, "keyspace", "create", "cli", "--partitioning", "tree").returncode == 2
    assert cli(cluster, "keyspace", "create", "cli", "--partitioning", "single", "--shards", "2").returncode == 2
    assert cli(cluster, "keyspace", "drop", "cli").stdout == "OK\n"
    assert cli(cluster, "keyspace", "drop", "cli").returncode == 0
    assert cli(cluster, "keyspace", "drop", "default").returncode == 1
    assert cli(cluster, "keyspace", "describe", "cli").returncode == 1


def test_created_and_dropped_under_kills(tmp_path: Path) -> None:
    campaign = keyspaces.run(tmp_path, ROUNDS, SEED)
    report = campaign.report
    assert report.violations == []
    assert report.rounds == ROUNDS
    assert report.kills
    campaign.wipe_one()
    assert campaign.leftovers(), "the comparison sees a replica without its log"

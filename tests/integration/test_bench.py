"""`nebula-cli bench` at three nodes, in keyspaces of one shard and of several."""

from __future__ import annotations

import json

import pytest

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster
from tests.integration.test_keyspaces import cli


@pytest.mark.parametrize("keyspace", ["default", "bench"])
async def test_it_counts_what_it_did_and_leaves_no_key(cluster: Cluster, keyspace: str) -> None:
    async with AsyncClient(cluster.endpoints, keyspace=keyspace) as client:
        if keyspace != "default":
            await client.create_keyspace(keyspace, shards=3)
        await client.put(b"nebula-bench", b"mine")
        before = [row async for row in client.scan()]
        for words in (("put",), ("mix", "--in-flight", "300"), ("get", "--serializable", "--in-flight", "1")):
            done = cli(
                cluster, "-o", "json", "--keyspace", keyspace, "bench", *words, "--seconds", "1", "--keys", "500"
            )
            assert done.returncode == 0, done.stderr
            row = json.loads(done.stdout)
            assert (row["workload"], row["failed"], row["errors"]) == (words[0], 0, {})
            assert row["operations"] > 0
            assert [row async for row in client.scan()] == before, "no key remains, none of others is touched"
        if keyspace != "default":
            await client.drop_keyspace(keyspace)

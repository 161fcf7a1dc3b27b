"""Reads through a follower: linearizable by asking its leader, of bounded age, or as old as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from tests.integration.cluster import Cluster

WRITES = 100


def test_reads_through_a_follower(tmp_path: Path) -> None:
    async def follow(leader: str, follower: str) -> None:
        async with AsyncClient([leader]) as writer, AsyncClient([follower], timeout=3.0) as reader:
            for number in range(WRITES):
                await writer.put(b"k", b"%d" % number)
                found = await reader.get(b"k")
                assert found is not None
                assert found.value == b"%d" % number, "a write that was acknowledged is read, whoever is asked"
            found = await reader.get(b"k", max_staleness=60.0)
            assert found is not None

    async def alone(follower: str) -> None:
        async with AsyncClient([follower], timeout=2.0) as reader:
            found = await reader.get(b"k", max_staleness=60.0)
            assert found is not None, "its leader confirmed this state within the minute"
            found = await reader.get(b"k", serializable=True)
            assert found is not None
            for reads in (reader.get(b"k", max_staleness=0.001), reader.get(b"k")):
                with pytest.raises(NebulaError):
                    await reads

    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.wait_ready()
        leader = cluster.leader()
        follower = (leader + 1) % 3
        asyncio.run(follow(cluster.endpoints[leader], cluster.endpoints[follower]))
        cluster.kill(*(node for node in cluster.all if node != follower))
        asyncio.run(alone(cluster.endpoints[follower]))

"""Under a lock a counter that is read and written in two steps loses nothing, also over killed leaders."""

from __future__ import annotations

import asyncio

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

HOLDERS = 4
TURNS = 40
KILLS = 2


async def test_a_lock_has_one_holder_over_killed_leaders(fresh_cluster: Cluster) -> None:
    cluster, tokens = fresh_cluster, list[int]()

    async def work(number: int) -> None:
        endpoints = cluster.endpoints[number % 3 :] + cluster.endpoints[: number % 3]
        async with AsyncClient(endpoints, timeout=20.0) as client, client.session() as session:
            for _ in range(TURNS):
                async with client.lock(b"lock", value=b"%d" % number) as lock:
                    tokens.append(lock.token)
                    found = await client.get(b"counter")
                    await session.put(b"counter", b"%d" % (int(found.value) + 1 if found else 1))
                    lock.check()
                await asyncio.sleep(0)

    async def kill() -> None:
        for number in range(KILLS):
            while len(tokens) < HOLDERS * TURNS * (number + 1) // (KILLS + 1):
                await asyncio.to_thread(cluster.wait_ready)
            leader = await asyncio.to_thread(cluster.leader)
            await asyncio.to_thread(cluster.kill, leader)
            await asyncio.to_thread(cluster.start, leader)
            await asyncio.to_thread(cluster.wait_ready)

    await asyncio.gather(kill(), *map(work, range(HOLDERS)))
    assert tokens == sorted(set(tokens))
    assert len(tokens) == HOLDERS * TURNS
    async with AsyncClient(cluster.endpoints) as client:
        counter = await client.get(b"counter")
        assert counter is not None
        assert int(counter.value) == HOLDERS * TURNS
        assert await client.get(b"lock") is None

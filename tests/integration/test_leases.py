"""A lease that is kept alive does not expire early, and one that isn't does expire, over three killed leaders."""

from __future__ import annotations

import asyncio
import time

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

TTL = 3
LEADERLESS = 4.0
"""Seconds in which a killed leader's place is surely taken."""


async def test_leases_live_by_replicated_time(fresh_cluster: Cluster, fresh_client: AsyncClient) -> None:
    cluster, client = fresh_cluster, fresh_client
    kept = await client.grant_lease(TTL)
    await client.put(b"lease/kept", b"", lease=kept.id)
    left: list[tuple[bytes, float, float]] = []
    async with client.keep_alive(kept.id) as keeper:
        for number in range(3):
            asked = time.monotonic()
            lease = await client.grant_lease(TTL)
            granted = time.monotonic()
            key = b"lease/left/%d" % number
            await client.put(key, b"", lease=lease.id)
            left.append((key, asked, granted))
            leader = await asyncio.to_thread(cluster.leader)
            await asyncio.to_thread(cluster.kill, leader)
            await asyncio.to_thread(cluster.leader)
            await asyncio.to_thread(cluster.start, leader)
            await asyncio.to_thread(cluster.wait_ready)
            keeper.check()
            assert await client.get(b"lease/kept") is not None
        for key, asked, granted in left:
            gone = await expiry(client, key)
            assert gone is None or gone - asked >= TTL, f"{key!r} expired {TTL - (gone - asked):.2f} s early"
            assert await client.get(key) is None
            assert gone is None or gone - granted <= TTL + 2 + LEADERLESS
        keeper.check()
        assert await client.get(b"lease/kept") is not None
    asked = time.monotonic()
    gone = await expiry(client, b"lease/kept")
    assert gone is not None
    assert gone - asked <= TTL + 2 + LEADERLESS


async def expiry(client: AsyncClient, key: bytes) -> float | None:
    """When `key` went, or None if it was gone already. Waits for the event, not for a time."""
    found = await client.get(key)
    if found is None:
        return None
    async with asyncio.timeout(30):
        async for _ in client.watch(key, start_revision=found.mod_revision + 1, no_put=True):
            return time.monotonic()
    return None

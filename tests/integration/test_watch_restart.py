"""After a restart of all nodes a watch from revision 2 yields every event since, once, in order."""

from __future__ import annotations

import asyncio
import random

from nebuladb.client import AsyncClient
from nebuladb.client.types import EventType
from tests.integration.cluster import Cluster

EVENTS = 1_500


async def test_a_watch_from_revision_2_yields_everything_once_in_order(
    fresh_cluster: Cluster, fresh_client: AsyncClient
) -> None:
    cluster, client = fresh_cluster, fresh_client
    expected: list[tuple[int, bytes, bytes | None]] = []
    rng = random.Random(5)
    for number in range(EVENTS // 3):
        key = b"%d" % rng.randrange(20)
        value = b"value %d" % number
        expected.append(((await client.put(key, value)).revision, key, value))
        if number % 5 == 0:
            gone = await client.delete(key)
            expected.append((gone.revision, key, None))
        pair = await client.txn().put(b"a%d" % number, value).put(b"b%d" % number, value).commit()
        expected += [(pair.revision, b"a%d" % number, value), (pair.revision, b"b%d" % number, value)]
    assert expected[0][0] == 2

    cluster.kill(*cluster.all)
    cluster.start()
    cluster.wait_ready()

    live = [(await client.put(b"after", b"%d" % number)).revision for number in range(10)]
    expected += [(revision, b"after", b"%d" % number) for number, revision in enumerate(live)]
    for endpoint in cluster.endpoints:
        async with AsyncClient([endpoint]) as one:
            assert await collect(one, len(expected)) == expected


async def collect(client: AsyncClient, count: int) -> list[tuple[int, bytes, bytes | None]]:
    """`count` events from revision 2 on, and none that comes a moment later."""
    found: list[tuple[int, bytes, bytes | None]] = []
    watch = client.watch(b"\0", b"\0", start_revision=2)
    async with asyncio.timeout(30):
        async for event in watch:
            kv = event.kv
            found.append((kv.mod_revision, kv.key, kv.value if event.type is EventType.PUT else None))
            if len(found) == count:
                break
    return found

"""A slow disk costs waiting, not the loop: nothing is refused and no leader lost. (How long the loop is away at most is
a time, and `make bench-stall` prints it.)"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.stall import FLUSH_MS, READ_MS, TIMEOUT, Watcher, key, load, mix
from nebuladb.client import AsyncClient
from nebuladb.ids import DEFAULT_GROUP
from tests.integration import powerfail
from tests.integration.cluster import Cluster

KEYS = 20_000


def test_a_slow_disk_costs_no_leader(tmp_path: Path) -> None:
    library = powerfail.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler, so a slow disk can't be simulated here")
    records = [tmp_path / f"n{node + 1}.synced" for node in range(3)]

    def environ(node: int) -> Mapping[str, str]:
        slow = powerfail.environ(library, records[node], cluster.data_dir(node))
        return {**slow, "SYNCSPY_READ_DELAY_MS": "0"}

    async def scenario() -> None:
        async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
            await load(client, KEYS)
            watcher = await asyncio.to_thread(Watcher, cluster)
            for path in records:
                powerfail.control(path, delay_ms=FLUSH_MS, match="/raft/", read_delay_ms=READ_MS)
            puts, gets, refused = await mix(client, KEYS, 4)
            assert puts > 0
            assert gets > 0
            assert refused == 0
            assert await asyncio.to_thread(watcher.rare, "slice waits for rows") > 0, "nothing was cold"
            assert await asyncio.to_thread(lambda: watcher.leader_changes) == 0
            for path in records:
                powerfail.control(path)
            assert (await client.delete(b"key/", b"key0")).deleted == KEYS
            assert await client.get(key(1)) is None
            await client.state_hash(DEFAULT_GROUP)
            assert await asyncio.to_thread(lambda: watcher.leader_changes) == 0

    # So little memory that most of the data has to leave it.
    with Cluster(tmp_path, environ={"NEBULA_MEMORY": "64MiB"}, node_environ=environ) as cluster:
        cluster.start()
        cluster.wait_ready()
        asyncio.run(scenario())

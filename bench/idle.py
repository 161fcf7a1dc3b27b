"""What shards cost that nobody uses: three nodes, once as a new cluster has them, then with `--shards` more.

``python -m bench.idle --shards 1000`` prints one line of key=value pairs: the share of a core and the memory that a
node takes before and after, seconds to create the shards, the share of leaders of a node that is then killed and the
seconds until every shard has another, and after a restart of all nodes the seconds until each is ready, until every
shard has a leader, and until `--puts` puts of as many keys, hence in many shards, were answered. Exit code 1 if an idle
node takes 3 % of a core or more, or if a shard is without a leader for more than 5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

REST_SECONDS: Final = 5.0
"""After which the shards have fallen quiet."""
PATIENCE: Final = 120.0
IN_FLIGHT: Final = 64
KEYSPACE: Final = "idle"
MAX_CORE: Final = 0.03
MAX_LEADERLESS: Final = 5.0
LOOK_SECONDS: Final = 0.05


def core_seconds(pid: int) -> float:
    """What a process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Its resident memory, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def idle(cluster: Cluster, seconds: float) -> tuple[float, float]:
    """(share of a core, MiB) of the median node over so many seconds without any request."""
    pids = [cluster.pid(node) for node in cluster.all]
    before = [core_seconds(pid) for pid in pids]
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    used = [core_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
    return statistics.median(used) / took, statistics.median(map(memory, pids))


async def led(cluster: Cluster) -> None:
    """Until every shard has a leader."""
    async with AsyncClient(cluster.endpoints, timeout=PATIENCE) as client:
        while not all(leader for _, leader in await client.shards()):  # noqa: ASYNC110  # another process's state
            await asyncio.sleep(0.1)


async def bereaved(cluster: Cluster) -> tuple[float, float]:
    """Kill a node; (share of the leaders that it had, seconds until every shard has another)."""
    victim = cluster.all[-1]
    async with AsyncClient(cluster.endpoints[:1], timeout=PATIENCE) as client:
        status = await client.status(cluster.endpoints[victim])
        node = status.header.node_id
        leaders = [leader for _, leader in await client.shards()]
        cluster.kill(victim)
        began = time.monotonic()
        while not all(leader not in (0, node) for _, leader in await client.shards()):  # noqa: ASYNC110  # as above
            await asyncio.sleep(LOOK_SECONDS)
        return leaders.count(node) / len(leaders), time.monotonic() - began


async def put(cluster: Cluster, count: int) -> None:
    """One put each of `count` keys, which lie in nearly as many shards if there are many."""
    async with AsyncClient(cluster.endpoints, keyspace=KEYSPACE, timeout=PATIENCE) as client:
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> None:
            async with room:
                await client.put(b"%d" % number, b"")

        await asyncio.gather(*(one(number) for number in range(count)))


async def create(cluster: Cluster, shards: int) -> None:
    """Make the keyspace."""
    async with AsyncClient(cluster.endpoints) as client:
        await client.create_keyspace(KEYSPACE, shards=shards, timeout=PATIENCE)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each idle measurement")
    parser.add_argument("--puts", type=int, default=200)
    options = parser.parse_args()
    numbers: dict[str, float] = {"shards": options.shards}
    with tempfile.TemporaryDirectory(prefix="nebula-idle-") as scratch, Cluster(Path(scratch)) as cluster:
        cluster.start()
        cluster.wait_ready()
        time.sleep(REST_SECONDS)
        numbers["core_before"], numbers["mib_before"] = idle(cluster, options.seconds)
        began = time.monotonic()
        asyncio.run(create(cluster, options.shards))
        numbers["create_seconds"] = time.monotonic() - began
        time.sleep(REST_SECONDS)
        numbers["core_idle"], numbers["mib_idle"] = idle(cluster, options.seconds)
        numbers["killed_share"], numbers["takeover_seconds"] = asyncio.run(bereaved(cluster))
        cluster.stop()
        began = time.monotonic()
        cluster.start()
        cluster.wait_ready()
        numbers["ready_seconds"] = time.monotonic() - began
        asyncio.run(led(cluster))
        numbers["led_seconds"] = time.monotonic() - began
        asyncio.run(put(cluster, options.puts))
        numbers["served_seconds"] = time.monotonic() - began
        cluster.stop()
    print(" ".join(f"{name}={value:.3g}" for name, value in numbers.items()))
    return 0 if numbers["core_idle"] < MAX_CORE and numbers["takeover_seconds"] <= MAX_LEADERLESS else 1


if __name__ == "__main__":
    sys.exit(main())

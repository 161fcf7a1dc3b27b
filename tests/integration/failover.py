"""How long a cluster is without a leader: SIGKILLs the leader again and again under a stream of puts.

``python -m tests.integration.failover --kills 20`` prints one line of key=value pairs: the time from the kill until a
put through a surviving node succeeds (median and worst), and the most election rounds, that is terms, that a leader
took. It exits with 1 if one took more than two. Times are printed, never judged.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from tests.integration.cluster import Cluster

MAX_ROUNDS: Final = 2
"""A split vote may cost one more round; more would mean that elections get in each other's way."""
TRY_SECONDS: Final = 0.5
OUTAGE_SECONDS: Final = 30.0


async def outage(cluster: Cluster, leader: int) -> float:
    """Seconds from the SIGKILL of `leader` until a put succeeds."""
    survivors = [cluster.endpoints[node] for node in cluster.all if node != leader]
    async with AsyncClient(survivors, timeout=TRY_SECONDS) as client:
        await client.get(b"failover")
        await asyncio.to_thread(cluster.kill, leader)
        killed = time.monotonic()
        while time.monotonic() < killed + OUTAGE_SECONDS:
            try:
                await client.put(b"failover", b"")
            except NebulaError:
                continue
            return time.monotonic() - killed
    raise TimeoutError(f"no put succeeded within {OUTAGE_SECONDS:g} s of the leader's death")


async def run(cluster: Cluster, kills: int) -> tuple[list[float], list[int]]:
    """Seconds and election rounds of each kill."""
    seconds, rounds = [], []
    for number in range(kills):
        leader = await asyncio.to_thread(cluster.leader)
        before = await asyncio.to_thread(cluster.leadership)
        seconds.append(await outage(cluster, leader))
        await asyncio.to_thread(cluster.leader)
        after = await asyncio.to_thread(cluster.leadership)
        assert before is not None
        assert after is not None
        rounds.append(after[0] - before[0])
        print(f"kill {number + 1}/{kills}: {seconds[-1]:.2f} s, {rounds[-1]} rounds", file=sys.stderr)
        cluster.start(leader)
        await asyncio.to_thread(cluster.wait_ready)
    return seconds, rounds


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        cluster.start()
        cluster.wait_ready()
        seconds, rounds = asyncio.run(run(cluster, arguments.kills))
    print(
        f"kills={len(seconds)} median_seconds={statistics.median(seconds):.2f} worst_seconds={max(seconds):.2f} "
        f"most_rounds={max(rounds)}"
    )
    return 0 if max(rounds) <= MAX_ROUNDS else 1


if __name__ == "__main__":
    sys.exit(main())

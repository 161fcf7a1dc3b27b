"""What many groups cost: the same load on a keyspace of one shard and on one of 64, in pairs of rounds.

``python -m bench.groups`` prints, for each pair, puts per second with ``--in-flight`` writes in flight; then, with as
many puts per second on both (``--share`` of what the slower one did), the log flushes per second of all nodes
(``nebula_log_fsync_total``); at the end the medians of the ratios 64 shards : 1 shard. How much is in flight matters:
with few writes a shard each is a log entry of its own, whatever the groups share.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bench.load import drive
from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

ONE: Final = "one"
MANY: Final = "many"
VALUE: Final = b"x" * 256
KEYS: Final = 100_000
TIMEOUT: Final = 30.0


class Round(NamedTuple):
    """Puts, and log flushes of all nodes, per second."""

    puts: float
    flushes: float


def flushes(cluster: Cluster) -> float:
    """Log flushes of all nodes so far."""
    return sum(cluster.metric(node, "nebula_log_fsync_total") or 0.0 for node in cluster.all)


async def one_round(cluster: Cluster, keyspace: str, seconds: float, in_flight: int, rate: float = 0.0) -> Round:
    """One round on one keyspace, through all nodes."""
    clients = [AsyncClient([endpoint], keyspace=keyspace, timeout=TIMEOUT) for endpoint in cluster.endpoints]
    try:
        before, began = await asyncio.to_thread(flushes, cluster), time.monotonic()
        puts = [partial(client.put, value=VALUE) for client in clients]
        done = await drive(puts, KEYS, seconds, in_flight, rate)
        elapsed = time.monotonic() - began
        after = await asyncio.to_thread(flushes, cluster)
    finally:
        for client in clients:
            await client.close()
    return Round(done / elapsed, (after - before) / elapsed)


async def run(
    cluster: Cluster, shards: int, rounds: int, seconds: float, in_flight: int, share: float
) -> tuple[float, float]:
    """Median ratios many : one of the rate, and of the flushes per second at the same rate."""
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
        await client.create_keyspace(ONE, partitioning="single")
        await client.create_keyspace(MANY, partitioning="hash", shards=shards)
    rates, costs = [], []
    for number in range(rounds):
        order = (ONE, MANY) if number % 2 else (MANY, ONE)
        found = {name: await one_round(cluster, name, seconds, in_flight) for name in order}
        rates.append(found[MANY].puts / found[ONE].puts)
        rate = share * min(one.puts for one in found.values())
        paced = {name: await one_round(cluster, name, seconds, in_flight, rate) for name in order}
        costs.append(paced[MANY].flushes / paced[ONE].flushes)
        print(
            f"round {number + 1}: puts/s one {found[ONE].puts:.0f}, many {found[MANY].puts:.0f}; "
            f"flushes/s at {paced[ONE].puts:.0f} and {paced[MANY].puts:.0f} puts/s "
            f"one {paced[ONE].flushes:.0f}, many {paced[MANY].flushes:.0f}",
            flush=True,
        )
    return statistics.median(rates), statistics.median(costs)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--in-flight", type=int, default=2_048)
    parser.add_argument("--share", type=float, default=0.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        cluster.start()
        cluster.wait_ready()
        rate, cost = asyncio.run(
            run(cluster, arguments.shards, arguments.rounds, arguments.seconds, arguments.in_flight, arguments.share)
        )
    print(f"shards={arguments.shards} rate_ratio={rate:.2f} flush_ratio={cost:.2f}")


if __name__ == "__main__":
    main()

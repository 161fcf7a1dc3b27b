"""What many groups cost: the same load on a keyspace of one shard and on one of 64, in pairs of rounds.

``python -m bench.groups`` prints, for each pair, puts per second and log flushes a put (``nebula_log_fsync_total`` of
all nodes), and at the end the medians of the ratios 64 shards : 1 shard. Flushes are counted a put: that is flushes per
second at the same rate of puts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

ONE: Final = "one"
MANY: Final = "many"
VALUE: Final = b"x" * 256
KEYS: Final = 100_000
TIMEOUT: Final = 30.0


class Round(NamedTuple):
    """Puts per second, and log flushes of all nodes a put."""

    puts: float
    flushes: float


async def drive(clients: list[AsyncClient], seconds: float, in_flight: int) -> int:
    """Put for `seconds` with `in_flight` workers; how many puts were acknowledged."""
    done = 0
    end = time.monotonic() + seconds

    async def worker(number: int) -> None:
        nonlocal done
        client = clients[number % len(clients)]
        count = 0
        while time.monotonic() < end:
            await client.put(b"%d" % ((number * 7919 + count * 104_729) % KEYS), VALUE)
            count += 1
            done += 1

    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return done


def flushes(cluster: Cluster) -> float:
    """Log flushes of all nodes so far."""
    return sum(cluster.metric(node, "nebula_log_fsync_total") or 0.0 for node in cluster.all)


async def one_round(cluster: Cluster, keyspace: str, seconds: float, in_flight: int) -> Round:
    """One round on one keyspace, through all nodes."""
    clients = [AsyncClient([endpoint], keyspace=keyspace, timeout=TIMEOUT) for endpoint in cluster.endpoints]
    try:
        before, began = await asyncio.to_thread(flushes, cluster), time.monotonic()
        done = await drive(clients, seconds, in_flight)
        elapsed = time.monotonic() - began
        after = await asyncio.to_thread(flushes, cluster)
    finally:
        for client in clients:
            await client.close()
    return Round(done / elapsed, (after - before) / done)


async def run(cluster: Cluster, shards: int, rounds: int, seconds: float, in_flight: int) -> tuple[float, float]:
    """Median ratios many : one of the rate and of the flushes a put."""
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
        await client.create_keyspace(ONE, partitioning="single")
        await client.create_keyspace(MANY, partitioning="hash", shards=shards)
    rates, costs = [], []
    for number in range(rounds):
        order = (ONE, MANY) if number % 2 else (MANY, ONE)
        found = {name: await one_round(cluster, name, seconds, in_flight) for name in order}
        rates.append(found[MANY].puts / found[ONE].puts)
        costs.append(found[MANY].flushes / found[ONE].flushes)
        print(
            f"round {number + 1}: puts/s one {found[ONE].puts:.0f}, many {found[MANY].puts:.0f}; "
            f"flushes a put one {found[ONE].flushes:.3f}, many {found[MANY].flushes:.3f}"
        )
    return statistics.median(rates), statistics.median(costs)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--in-flight", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        cluster.start()
        cluster.wait_ready()
        rate, cost = asyncio.run(
            run(cluster, arguments.shards, arguments.rounds, arguments.seconds, arguments.in_flight)
        )
    print(f"shards={arguments.shards} rate_ratio={rate:.2f} flush_ratio={cost:.2f}")


if __name__ == "__main__":
    main()

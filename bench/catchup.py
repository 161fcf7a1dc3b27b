"""What clients feel while a node that was away catches up by snapshot.

``python -m bench.catchup --keys 500000 --rounds 5``. In each round clients put to three nodes, all well, for a while;
then a follower is killed, so many keys are written (the same in each round, under a retention of few revisions), and it
starts again, while the clients put as before until the snapshot is in and it has caught up. Prints both rates and 99th
percentiles; the last line has the medians of the ratios, with : without. Exit code 1 if they miss the aims, 0.7 of the
rate and 3 times the latency.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster
from tests.integration.test_snapshots import applied, log_start, received

BATCH: Final = 1_000
LOADERS: Final = 4
TIMEOUT: Final = 120.0
CATCH_UP_SECONDS: Final = 900.0
VALUE: Final = 256
LIVE_KEYS: Final = 10_000
MIN_RATE: Final = 0.7
MAX_P99: Final = 3.0
LOG_BYTES: Final = 64 << 20
"""The log that is kept, the product's default; less where fewer keys than would fill it are written."""
SETTLE_SECONDS: Final = 3.0
ENVIRON: Final = {"NEBULA_AUTO_COMPACTION_MODE": "revision", "NEBULA_AUTO_COMPACTION_RETENTION": "1000"}


class Felt(NamedTuple):
    """By clients."""

    rate: float
    """Puts a second."""
    p99: float
    """Seconds."""


class Clients:
    """Puts, so many at a time, over all nodes; the client keeps clear of those that don't answer."""

    def __init__(self, cluster: Cluster, in_flight: int) -> None:
        self._cluster = cluster
        self._in_flight = in_flight

    async def put(self, until: asyncio.Event) -> Felt:
        """Until the event is set."""
        seconds: list[float] = []
        body = random.Random(1).randbytes(VALUE)
        began = time.monotonic()
        async with AsyncClient(self._cluster.endpoints, timeout=TIMEOUT) as client:

            async def worker(number: int) -> None:
                rng = random.Random(number)
                while not until.is_set():
                    start = time.monotonic()
                    await client.put(b"live/%d" % rng.randrange(LIVE_KEYS), body)
                    seconds.append(time.monotonic() - start)

            await asyncio.gather(*map(worker, range(self._in_flight)))
        took = time.monotonic() - began
        return Felt(len(seconds) / took, statistics.quantiles(seconds, n=100)[98])


async def write(cluster: Cluster, keys: int, number: int) -> None:
    """The keys that the node misses, through those that run."""
    starts = iter(range(0, keys, BATCH))
    rng = random.Random(number)
    async with AsyncClient([cluster.endpoints[node] for node in cluster.running], timeout=TIMEOUT) as client:

        async def worker() -> None:
            for start in starts:
                await client.batch({b"key/%09d" % key: rng.randbytes(VALUE) for key in range(start, start + BATCH)})

        await asyncio.gather(*(worker() for _ in range(LOADERS)))


async def one_round(cluster: Cluster, options: argparse.Namespace, number: int) -> tuple[Felt, Felt, float]:
    """(without, with, seconds of the catch-up)"""
    clients = Clients(cluster, options.in_flight)
    enough = asyncio.Event()
    asyncio.get_running_loop().call_later(options.seconds, enough.set)
    without = await clients.put(enough)
    late = (await asyncio.to_thread(cluster.leader) + 1) % 3
    had = applied(cluster, late)
    await asyncio.to_thread(cluster.kill, late)
    await write(cluster, options.keys, number)
    others = list(cluster.running)
    await asyncio.to_thread(
        cluster.wait_for, lambda: all(log_start(cluster, node) > had + 1 for node in others), "the logs are cut"
    )
    await asyncio.sleep(SETTLE_SECONDS)  # flushes and compactions of what was just written are not the catch-up's
    began = time.monotonic()
    cluster.start(late)
    caught = asyncio.Event()

    async def watch() -> None:
        try:
            await asyncio.to_thread(
                cluster.wait_for, lambda: received(cluster, late) >= 1, "it is in", CATCH_UP_SECONDS
            )
            last = max(applied(cluster, node) for node in others)
            await asyncio.to_thread(
                cluster.wait_for, lambda: applied(cluster, late) >= last, "it has caught up", CATCH_UP_SECONDS
            )
        finally:
            caught.set()

    during, _ = await asyncio.gather(clients.put(caught), watch())
    took = time.monotonic() - began
    await asyncio.to_thread(cluster.wait_ready)
    return without, during, took


async def run(cluster: Cluster, options: argparse.Namespace) -> tuple[str, bool]:
    """The last line, and whether the aims are met."""
    rates, latencies, times = [], [], []
    for number in range(options.rounds):
        without, during, took = await one_round(cluster, options, number)
        rates.append(during.rate / without.rate)
        latencies.append(during.p99 / without.p99)
        times.append(took)
        print(
            f"round {number + 1}: without {without.rate:.0f}/s p99 {without.p99 * 1000:.1f} ms; "
            f"during {during.rate:.0f}/s p99 {during.p99 * 1000:.1f} ms; caught up in {took:.1f} s",
            flush=True,
        )
    rate, p99 = statistics.median(rates), statistics.median(latencies)
    line = (
        f"keys={options.keys} rounds={options.rounds} rate_ratio={rate:.2f} p99_ratio={p99:.2f} "
        f"catch_up_seconds={statistics.median(times):.1f}"
    )
    return line, rate >= MIN_RATE and p99 <= MAX_P99


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=500_000, help="that the node misses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement without")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--rate", default="32MiB", help="snapshot-rate")
    options = parser.parse_args()
    kept = min(LOG_BYTES, options.keys * VALUE // 4)
    environ = {**ENVIRON, "NEBULA_SNAPSHOT_RATE": options.rate, "NEBULA_LOG_KEEP_SIZE": f"{kept}"}
    directory = tempfile.TemporaryDirectory(prefix="nebula-catchup-")
    with directory as scratch, Cluster(Path(scratch), environ=environ) as nodes:
        nodes.start()
        nodes.wait_ready()
        line, good = asyncio.run(run(nodes, options))
    print(line, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

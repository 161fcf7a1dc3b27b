"""What a node keeps in memory as its data grows, and what a get costs among much data.

``python -m bench.memory --keys 1000000`` starts three nodes with ``--memory 128MiB`` and loads keys of 256-byte values
through one client: resident memory of each node at a tenth of the keys and at all of them, then gets of the same number
of random keys among few (10,000) and among all, alternating, through the client; ``--verify`` reads every key back.
The last line sums up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

FEW: Final = 10_000
SAMPLE: Final = 1_000
ROUNDS: Final = 9
BATCH: Final = 1_000
TIMEOUT: Final = 120.0
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def key(number: int) -> bytes:
    """The `number`th key."""
    return b"key/%08d" % (number * 7_368_787 % 100_000_007)


def value(number: int) -> bytes:
    """Its value, which doesn't compress."""
    return random.Random(number).randbytes(256)


def resident(cluster: Cluster) -> list[int]:
    """MiB of each node."""
    return [int(Path(f"/proc/{cluster.pid(n)}/statm").read_text().split()[1]) * PAGE >> 20 for n in cluster.all]


async def load(client: AsyncClient, first: int, last: int) -> None:
    """Put the keys `first` up to `last`."""
    starts = iter(range(first, last, BATCH))

    async def worker() -> None:
        for start in starts:
            await client.batch({key(number): value(number) for number in range(start, min(start + BATCH, last))})

    await asyncio.gather(*(worker() for _ in range(2)))


async def cost(client: AsyncClient, numbers: list[int]) -> float:
    """Seconds a get, one at a time."""
    began = time.perf_counter()
    for number in numbers:
        await client.get(key(number))
    return (time.perf_counter() - began) / len(numbers)


async def verify(client: AsyncClient, keys: int) -> int:
    """Keys that are not what was put."""
    wrong = 0
    for start in range(0, keys, BATCH):
        numbers = range(start, min(start + BATCH, keys))
        found = await client.get_many(key(number) for number in numbers)
        for number in numbers:
            got = found[key(number)]
            wrong += got is None or got.value != value(number)
    return wrong


async def run(cluster: Cluster, keys: int, *, check: bool) -> str:
    """All of it; the summary."""
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
        began = time.monotonic()
        await load(client, 0, keys // 10)
        early = resident(cluster)
        print(f"{keys // 10} keys: {time.monotonic() - began:.0f} s, MiB resident {early}", flush=True)
        await load(client, keys // 10, keys)
        late = resident(cluster)
        print(f"{keys} keys: {time.monotonic() - began:.0f} s, MiB resident {late}", flush=True)
        rng = random.Random(3)
        few = rng.sample(range(FEW), SAMPLE)
        many = rng.sample(range(keys), SAMPLE)
        first = await cost(client, many), await cost(client, few)
        ratios = [await cost(client, many) / await cost(client, few) for _ in range(ROUNDS)]
        print(f"first gets: {first[0] * 1e6:.0f} us among all, {first[1] * 1e6:.0f} us among few", flush=True)
        wrong = await verify(client, keys) if check else 0
        grown = max(after - before for before, after in zip(early, late, strict=True))
        return (
            f"keys={keys} wrong={wrong} resident_mib={max(*late, *resident(cluster))} grown_mib={grown} "
            f"get_ratio_warm={statistics.median(ratios):.2f} get_ratio_first={first[0] / first[1]:.2f}"
        )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--memory", default="128MiB")
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nebula-memory-") as scratch,
        Cluster(Path(scratch), environ={"NEBULA_MEMORY": options.memory}) as cluster,
    ):
        cluster.start()
        cluster.wait_ready()
        print(asyncio.run(run(cluster, options.keys, check=options.verify)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

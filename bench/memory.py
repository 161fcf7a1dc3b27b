"""What a node keeps in memory as its data grows, and what a get costs among much data.

``python -m bench.memory --keys 1000000`` starts three nodes with ``--memory 128MiB`` and loads keys of 256-byte values
through one client. It prints, at a tenth of the keys and at all of them, each node's resident memory beside what it
counts itself of its budget (``nebula_queue_size``); then what gets of random keys cost, one at a time through the
client, in a keyspace of 10,000 keys and among all, in alternating rounds: of keys that were asked for before
(``warm``), of any, when those 10,000 are in memory and most of all are not (``any``), and with nodes that have just
restarted and no table in the page cache (``cold``, by ``posix_fadvise``). ``--verify`` compares every key by a scan,
and a sample by gets. The last line sums up; exit code 1 if a key was not what was put.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

FEW: Final = 10_000
SAMPLE: Final = 500
ROUNDS: Final = 9
COLD_ROUNDS: Final = 5
WARMING: Final = 200
CHECKED: Final = 20_000
"""Keys that are compared by gets, too."""
SCAN_TIMEOUT: Final = 3_600.0
BATCH: Final = 1_000
TIMEOUT: Final = 120.0
FACTOR: Final = 7_368_787
MODULUS: Final = 100_000_007
INVERSE: Final = pow(FACTOR, -1, MODULUS)
SMALL: Final = "small"
"""The keyspace of few keys."""
SHARES: Final = re.compile(r'^nebula_queue_size\{queue="[a-z_]+_bytes"\} (\S+)$', re.MULTILINE)
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def key(number: int) -> bytes:
    """The `number`th key."""
    return b"key/%08d" % (number * FACTOR % MODULUS)


def value(number: int) -> bytes:
    """Its value, which doesn't compress."""
    return random.Random(number).randbytes(256)


def number_of(name: bytes) -> int:
    """Which key it is."""
    return int(name[4:]) * INVERSE % MODULUS


class Figures(NamedTuple):
    """MiB of each node."""

    resident: list[int]
    counted: list[int]
    """What it counts itself, of its budget."""


def measure(cluster: Cluster) -> Figures:
    """Now."""
    counted = []
    for node in cluster.all:
        _, text = cluster.admin(node, "/metrics")
        counted.append(int(sum(map(float, SHARES.findall(text)))) >> 20)
    pages = [Path(f"/proc/{cluster.pid(node)}/statm").read_text().split()[1] for node in cluster.all]
    return Figures([int(count) * PAGE >> 20 for count in pages], counted)


def drop_page_cache(cluster: Cluster) -> None:
    """Of all nodes' tables."""
    for node in cluster.all:
        for path in cluster.data_dir(node).glob("data/*.sst"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # a compaction may remove it
                os.fsync(file.fileno())  # a dirty page stays
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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


async def verify(cluster: Cluster, keys: int) -> int:
    """Keys that are not what was put: missing, more than there should be, or with another value."""
    wrong = rows = 0
    last = b""
    async with AsyncClient(cluster.endpoints, timeout=SCAN_TIMEOUT) as client:
        async for row in client.scan(b"key/", b"key0"):
            rows += 1
            number = number_of(row.key)
            wrong += row.key <= last or number >= keys or row.value != value(number)
            last = row.key
    rng = random.Random(5)
    numbers = rng.sample(range(keys), min(keys, CHECKED))
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            found = await client.get_many(key(number) for number in part)
            for number in part:
                got = found[key(number)]
                wrong += got is None or got.value != value(number)
    return wrong + abs(keys - rows)


async def compare(cluster: Cluster, keys: int, rounds: int, how: str) -> float:
    """The median ratio of a get's cost among all to one's among few; `how`: "warm", "any" or "cold"."""
    rng = random.Random(3)
    costs = []
    async with (
        AsyncClient(cluster.endpoints, keyspace=SMALL, timeout=TIMEOUT) as few,
        AsyncClient(cluster.endpoints, timeout=TIMEOUT) as many,
    ):
        for number in range(rounds):
            if how == "cold":
                await asyncio.to_thread(restart, cluster)
            pair = {}
            for client, count in ((few, FEW), (many, keys)) if number % 2 else ((many, keys), (few, FEW)):
                await cost(client, rng.sample(range(count), WARMING))  # connections, and indexes
                sample = rng.sample(range(count), SAMPLE)
                if how == "cold":
                    await asyncio.to_thread(drop_page_cache, cluster)
                elif how == "warm":
                    for _ in cluster.all:  # the nodes take calls in turn, and each is to know every key
                        await cost(client, sample)
                        sample = sample[1:] + sample[:1]
                pair[client] = await cost(client, sample)
            costs.append((pair[few], pair[many]))
    medians = [statistics.median(column) * 1e6 for column in zip(*costs, strict=True)]
    print(f"{how} gets: {medians[0]:.0f} us among few, {medians[1]:.0f} us among all", flush=True)
    return statistics.median(many_cost / few_cost for few_cost, many_cost in costs)


def restart(cluster: Cluster) -> None:
    """All nodes."""
    cluster.stop()
    cluster.start()
    cluster.wait_ready()


async def run(cluster: Cluster, keys: int, *, check: bool, gets: bool) -> tuple[str, int]:
    """All of it: the summary, and how many keys are wrong."""
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:
        began = time.monotonic()
        found = []
        for first, last in ((0, keys // 10), (keys // 10, keys)):
            await load(client, first, last)
            figures = await asyncio.to_thread(measure, cluster)
            print(f"{last} keys: {time.monotonic() - began:.0f} s, {figures}", flush=True)
            found.append(figures.resident)
        wrong = await verify(cluster, keys) if check else 0
        if check:
            found.append((await asyncio.to_thread(measure, cluster)).resident)
            print(f"verified: {time.monotonic() - began:.0f} s, {wrong} wrong, {found[-1]} MiB", flush=True)
        grown = max(after - before for before, after in zip(found[0], found[1], strict=True))
        line = f"keys={keys} wrong={wrong} resident_mib={max(map(max, found))} grown_mib={grown}"
        if gets:
            await client.create_keyspace(SMALL, partitioning="single")
            async with AsyncClient(cluster.endpoints, keyspace=SMALL, timeout=TIMEOUT) as small:
                await load(small, 0, FEW)
            for how in ("warm", "any"):
                line += f" get_ratio_{how}={await compare(cluster, keys, ROUNDS, how):.2f}"
    if gets:
        line += f" get_ratio_cold={await compare(cluster, keys, COLD_ROUNDS, 'cold'):.2f}"
    return line, wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--memory", default="128MiB")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--no-gets", action="store_true", help="leave out what gets cost")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nebula-memory-") as scratch,
        Cluster(Path(scratch), environ={"NEBULA_MEMORY": options.memory}) as cluster,
    ):
        cluster.start()
        cluster.wait_ready()
        line, wrong = asyncio.run(run(cluster, options.keys, check=options.verify, gets=not options.no_gets))
    print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

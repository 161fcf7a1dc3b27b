"""The disk that a key takes which is overwritten for ever, with a retention of so many revisions.

``python -m bench.overwritten --puts 1000000 --retention 1000`` overwrites one key on three nodes. Every `--every`
seconds it prints what each node's tables, WALs and all else take on the disk. The last line has the most that a node
ever took, the live data (the revisions that are kept), and the bar: three times that and 256 MiB; exit code 1 above it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

MIB: Final = 1 << 20
ALLOWANCE: Final = 256 * MIB
TIMES: Final = 3
TIMEOUT: Final = 60.0
LOOK_SECONDS: Final = 1.0
BLOCK: Final = 512
"""Bytes of `st_blocks`."""
KEY: Final = b"key"


def taken(directory: Path) -> Counter[str]:
    """Bytes on the disk, by kind: sst and wal of both databases, other."""
    found: Counter[str] = Counter()
    for database in ("data", "raft"):
        for path in (directory / database).glob("*"):
            kind = {".sst": f"{database}_sst", ".log": f"{database}_wal"}.get(path.suffix, "other")
            with contextlib.suppress(FileNotFoundError):  # a compaction may remove it
                found[kind] += path.stat().st_blocks * BLOCK
    return found


async def overwrite(cluster: Cluster, puts: int, size: int, in_flight: int) -> None:
    """So many puts of the key."""
    numbers = iter(range(puts))
    rng = random.Random(3)
    async with AsyncClient(cluster.endpoints, timeout=TIMEOUT) as client:

        async def worker() -> None:
            for _ in numbers:
                await client.put(KEY, rng.randbytes(size))

        await asyncio.gather(*(worker() for _ in range(in_flight)))


async def run(cluster: Cluster, options: argparse.Namespace) -> int:
    """Overwrite and look; the most bytes that a node took."""
    most = 0
    shown = began = time.monotonic()
    work = asyncio.create_task(overwrite(cluster, options.puts, options.value, options.in_flight))
    while not work.done():
        await asyncio.wait([work], timeout=LOOK_SECONDS)
        sizes = [taken(cluster.data_dir(node)) for node in cluster.all]
        most = max(most, *(size.total() for size in sizes))
        if work.done() or time.monotonic() - shown >= options.every:
            shown = time.monotonic()
            each = "; ".join(
                f"n{node + 1} " + " ".join(f"{kind}={count / MIB:.1f}" for kind, count in sorted(size.items()))
                for node, size in enumerate(sizes)
            )
            print(f"{shown - began:.0f} s: MiB: {each}", flush=True)
    await work
    return most


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--puts", type=int, default=1_000_000)
    parser.add_argument("--retention", type=int, default=1_000, help="revisions")
    parser.add_argument("--value", type=int, default=1_024, help="bytes")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    options = parser.parse_args()
    environ = {
        "NEBULA_AUTO_COMPACTION_MODE": "revision",
        "NEBULA_AUTO_COMPACTION_RETENTION": str(options.retention),
    }
    began = time.monotonic()
    directory = tempfile.TemporaryDirectory(prefix="nebula-overwritten-")
    with directory as scratch, Cluster(Path(scratch), environ=environ) as cluster:
        cluster.start()
        cluster.wait_ready()
        most = asyncio.run(run(cluster, options))
    live = options.retention * (len(KEY) + options.value)
    bar = TIMES * live + ALLOWANCE
    print(
        f"puts={options.puts} retention={options.retention} live_mib={live / MIB:.1f} most_mib={most / MIB:.1f} "
        f"bar_mib={bar / MIB:.1f} seconds={time.monotonic() - began:.0f}",
        flush=True,
    )
    return 0 if most <= bar else 1


if __name__ == "__main__":
    sys.exit(main())

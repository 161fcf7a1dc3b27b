"""A scan of many keys over 8 hash shards while they are written.

``python -m tests.integration.scan --keys 1000000`` prints one line of key=value pairs and exits with 1 unless the rows
came in order, none twice, none missing that stood throughout, and the first long before the last. The client's and the
nodes' memory is printed: what the scan added must not grow with the number of keys.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nebuladb.client import AsyncClient
from nebuladb.errors import NebulaError
from tests.integration.cluster import Cluster

KEYSPACE: Final = "scanned"
SHARDS: Final = 8
BATCH: Final = 2_000
VALUE: Final = 100
CHURN: Final = 5
"""One key in so many is overwritten, deleted and put back during the scan; the others stand throughout."""
TIMEOUT: Final = 60.0


@dataclass(slots=True)
class Report:
    """What a scan gave."""

    keys: int
    rows: int = 0
    writes: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    client_mib: float = 0.0
    """What the scan added to this process's peak."""
    node_mib: float = 0.0
    """What it added to the largest node's peak."""
    violations: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line of key=value pairs."""
        return (
            f"keys={self.keys} rows={self.rows} writes={self.writes} first_seconds={self.first_seconds:.3f} "
            f"seconds={self.seconds:.1f} client_mib={self.client_mib:.1f} node_mib={self.node_mib:.1f} "
            f"violations={len(self.violations)}"
        )


def name(number: int) -> bytes:
    """The key of a number."""
    return b"key/%09d" % number


async def load(client: AsyncClient, keys: int) -> None:
    """Put them all."""
    rng = random.Random(1)
    for start in range(0, keys, BATCH):
        numbers = range(start, min(start + BATCH, keys))
        await client.batch({name(number): rng.randbytes(VALUE) for number in numbers})


async def churn(client: AsyncClient, keys: int, report: Report) -> None:
    """Overwrite, delete and put back every `CHURN`th key, at random, until cancelled."""
    rng = random.Random(2)
    while True:
        numbers = [CHURN * rng.randrange(keys // CHURN) for _ in range(50)]
        with contextlib.suppress(NebulaError):
            if rng.random() < 0.5:
                await client.batch({}, [name(number) for number in set(numbers)])
            else:
                await client.batch({name(number): rng.randbytes(VALUE) for number in set(numbers)})
            report.writes += len(set(numbers))


async def scan(client: AsyncClient, report: Report) -> None:
    """Read everything, and check it as it comes."""
    began = time.monotonic()
    expected, last = 0, b""
    async for row in client.scan():
        if not report.rows:
            report.first_seconds = time.monotonic() - began
        report.rows += 1
        if row.key <= last:
            report.violations.append(f"{row.key!r} came after {last!r}")
        last = row.key
        number = int(row.key[4:])
        while expected < number:
            if expected % CHURN:
                report.violations.append(f"{name(expected)!r} stood throughout and is missing")
            expected += 1
        expected = number + 1
        if len(report.violations) > 10:
            return
    report.seconds = time.monotonic() - began
    if any(number % CHURN for number in range(expected, report.keys)):
        report.violations.append(f"the scan ended at {last!r}")
    if report.first_seconds * 4 > report.seconds and report.keys >= 100_000:
        report.violations.append("the first row came when most had been read")


def peak_mib(pid: int) -> float:
    """The most memory a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def own_peak_mib() -> float:
    """Likewise of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def run(cluster: Cluster, keys: int, *, create: bool = True) -> Report:
    """Create the keyspace, load it, scan it under writes."""
    report = Report(keys)
    async with AsyncClient(cluster.endpoints, keyspace=KEYSPACE, timeout=TIMEOUT) as client:
        if create:
            await client.create_keyspace(KEYSPACE, partitioning="hash", shards=SHARDS)
        await load(client, keys)
        before = own_peak_mib(), [peak_mib(cluster.pid(node)) for node in cluster.all]
        writer = asyncio.create_task(churn(client, keys, report))
        async with AsyncClient(cluster.endpoints[1:], keyspace=KEYSPACE, timeout=10 * TIMEOUT) as reader:
            await scan(reader, report)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    report.client_mib = own_peak_mib() - before[0]
    report.node_mib = max(peak_mib(cluster.pid(node)) - before[1][node] for node in cluster.all)
    return report


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        cluster.start()
        cluster.wait_ready()
        report = asyncio.run(run(cluster, arguments.keys))
    for violation in report.violations:
        print(violation, file=sys.stderr)
    print(report.line())
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

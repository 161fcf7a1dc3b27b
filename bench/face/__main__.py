"""The comparison: ``python -m bench.face [--quick]``, or ``--faces`` for our two against each other.

Three nodes of etcd and three of ours, at their defaults, both up all the time on one disk with fsync on, are asked in
turns, a run each, by one client with a connection to every node; see `bench.face.driver` for what its latencies are.
Prints a line a round, tables of medians, memory, and last a line of key=value pairs: ratios ours : etcd, of rates and
(`_cpu`) of the CPU time of all three nodes a call.

``--faces``: instead, on our nodes alone, etcd's API against ``nebula.v1`` over the same keyspace.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.face import etcd, requests
from bench.face.compare import Cell, Side, fill, paced_table, pairs, rounds, table
from bench.face.driver import Driver
from bench.face.etcd import Etcd
from bench.face.ours import Ours
from bench.face.scene import scratch, sync_seconds
from bench.idle import memory

ETCD_IS_MISSING: Final = 2
"""Exit code."""


class Extent(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    workloads: Sequence[str]
    in_flight: Sequence[int]
    paces: Sequence[tuple[str, float]]
    """Workload, calls a second: what either cluster can do with half a core to spare."""

    def cells(self) -> list[Cell]:
        """All of them."""
        closed = [Cell(name, (name, name), count) for name in self.workloads for count in self.in_flight]
        return closed + [Cell(name, (name, name), 0, rate) for name, rate in self.paces]


WHOLE: Final = Extent(
    5, 1.5, ("put", "range", "serializable", "mix", "txn"), (1, 64, 256, 1_024), (("put", 2_000.0), ("range", 5_000.0))
)
QUICK: Final = Extent(3, 1.0, ("put", "range"), (1, 64, 256), ())
FACES: Final = [
    Cell(name, (first, second), in_flight)
    for name, first, second in (("put", "v1_put", "put"), ("range", "v1_get", "range"))
    for in_flight in (1, 64, 256)
]
"""``nebula.v1`` is the first side."""


async def compare_with_etcd(theirs: Etcd, ours: Ours, extent: Extent, options: argparse.Namespace) -> None:
    """Both clusters are ready."""
    sides = [Side(cluster.name, cluster, Driver(cluster.ports)) for cluster in (theirs, ours)]
    for side in sides:
        await side.driver.connect(options.connections)
        loaded = await fill(side, options.keys)
        print(f"{side.name}: {loaded.calls:,} keys put, {loaded.rate:,.0f}/s")
    cells = extent.cells()
    await rounds(sides, cells, extent.rounds, extent.seconds, options.keys)
    print(f"\n{table(sides, cells)}")
    if extent.paces:
        print(f"\n{paced_table(sides, cells)}")
    for side in sides:
        used = ", ".join(f"{memory(pid):.0f}" for pid in side.cluster.pids)
        other = max(measured.idle for found in side.found.values() for measured in found)
        print(f"\n{side.name}: {used} MiB resident; the others took {other:.2f} cores at most while it was measured")
    print(f"\n{pairs(sides, cells)}")
    for side in sides:
        side.driver.close()


async def compare_faces(ours: Ours, count: int, seconds: float, options: argparse.Namespace) -> None:
    """The cluster is ready."""
    sides = [Side(name, ours, Driver(ours.ports)) for name in ("nebula.v1", "etcd's API")]
    for side in sides:
        await side.driver.connect(options.connections)
    await fill(sides[1], options.keys)
    await rounds(sides, FACES, count, seconds, options.keys)
    print(f"\n{table(sides, FACES)}\n\n{pairs(sides, FACES)}")
    for side in sides:
        side.driver.close()


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="put and range, three short rounds")
    parser.add_argument("--faces", action="store_true", help="etcd's API against nebula.v1, on our nodes alone")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of a run")
    parser.add_argument("--only", default="", help="workloads, with commas")
    parser.add_argument("--in-flight", default="", help="numbers, with commas")
    parser.add_argument("--keys", type=int, default=requests.KEYS)
    parser.add_argument("--connections", type=int, default=1, help="to each node")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    if not options.faces and not etcd.installed():
        print(
            "bench: etcd is not installed, so there is nothing to compare with (Debian: etcd-server)", file=sys.stderr
        )
        return ETCD_IS_MISSING
    extent = QUICK if options.quick else WHOLE
    extent = extent._replace(
        rounds=options.rounds or extent.rounds,
        seconds=options.seconds or extent.seconds,
        workloads=options.only.split(",") if options.only else extent.workloads,
        in_flight=[int(number) for number in options.in_flight.split(",")] if options.in_flight else extent.in_flight,
        paces=() if options.only or options.in_flight else extent.paces,
    )
    try:
        with scratch(options.folder) as (folder, stack):
            print(
                f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} before; fdatasync of 256 bytes "
                f"{sync_seconds(folder / 'sync') * 1e6:.0f} µs; runs of {extent.seconds:g} s"
            )
            ours = stack.enter_context(Ours(folder / "nebula"))
            ours.start()
            if options.faces:
                ours.wait_ready()
                uvloop.run(compare_faces(ours, options.rounds or 7, options.seconds or 1.0, options))
                return 0
            print(f"etcd {etcd.version()}, {etcd.NOTED}, all else by default")
            theirs = stack.enter_context(Etcd(folder / "etcd"))
            theirs.start()
            theirs.wait_ready()
            ours.wait_ready()
            uvloop.run(compare_with_etcd(theirs, ours, extent, options))
    except KeyboardInterrupt:
        print("interrupted; nothing is left", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a sync of the log costs with and without zeros ahead: ``python -m bench.syncs [--folder DIR] [--writers N]``.

Writers, a process each, append small records to a file of their own and make each durable, for as long as one round
takes; rounds of both kinds take turns. Prints the medians of each round's median, and their ratio. It asks the disk and
its file system only, nothing of NebulaDB: see `nebuladb.storage.preallocation`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from bench.face.scene import sync_seconds
from nebuladb.storage.preallocation import ZEROS

RECORD_BYTES: Final = 600
"""About a put of 256 bytes in the log."""
REST_SECONDS: Final = 0.0003
"""Between a sync and the next record."""


def one_round(path: Path, zeros: int) -> float:
    """Median seconds of a sync, of a new file with so many zeros ahead at its start: more than is written."""
    return sync_seconds(path, RECORD_BYTES, zeros=zeros, rest=REST_SECONDS)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--writers", type=int, default=3, help="as many nodes share the disk")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found: dict[int, list[float]] = {0: [], len(ZEROS): []}
    with (
        tempfile.TemporaryDirectory(prefix="nebula-bench-", dir=options.folder) as name,
        ProcessPoolExecutor(options.writers) as pool,
    ):
        paths = [Path(name) / str(number) for number in range(options.writers)]
        for _ in range(options.rounds):
            for zeros, medians in found.items():
                medians.append(statistics.median(pool.map(one_round, paths, [zeros] * len(paths))))
    grown, ahead = (statistics.median(medians) for medians in found.values())
    print(f"{options.writers} writers: {grown * 1e6:.0f} µs where the file grows, {ahead * 1e6:.0f} with zeros ahead")
    print(f"sync_ratio={ahead / grown:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

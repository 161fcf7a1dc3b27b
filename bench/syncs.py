"""What a sync of the log costs with and without zeros ahead: ``python -m bench.syncs [--folder DIR] [--writers N]``.

Writers, a process each, append small records to a file of their own and make each durable, for as long as one round
takes; rounds of both kinds take turns. Prints the medians of each round's median, and their ratio. It asks the disk and
its file system only, nothing of NebulaDB: see `nebuladb.storage.preallocation`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from nebuladb.storage.preallocation import ZEROS

RECORD: Final = b"x" * 600
"""About a put of 256 bytes in the log."""
SYNCS: Final = 300
REST_SECONDS: Final = 0.0003
"""Between a sync and the next record."""


def one_round(path: Path, zeros: int) -> float:
    """Median seconds of a sync, of a new file with so many zeros ahead at its start; there must be enough."""
    took = []
    file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        os.pwrite(file, bytes(zeros), 0)
        os.fsync(file)
        for _ in range(SYNCS):
            os.write(file, RECORD)
            began = time.perf_counter()
            os.fdatasync(file)
            took.append(time.perf_counter() - began)
            time.sleep(REST_SECONDS)
    finally:
        os.close(file)
    return statistics.median(took)


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

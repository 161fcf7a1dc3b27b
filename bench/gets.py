"""What a get costs the engine among many keys and among few.

``python -m bench.gets --keys 1000000`` loads two databases, laid out and bounded as a node's with ``--memory 128MiB``,
with so many keys and with 10,000, and gets keys one at a time as a node does: from memory, else from the disk in a call
that lets other threads run. Three ratios many : few, each the median of alternating rounds in one run:

* ``warm``: keys that were asked for before;
* ``first``: keys of blocks that the database has not read yet, out of the page cache;
* ``cold``: the same after the page cache was dropped (``posix_fadvise``, of the tables' files).

The first two are CPU time, so that a busy machine counts in neither; a disk's time is wall time, and wants a quiet one.
For the last two the database is opened anew for each round, and asked for some other keys, so that it knows index and
filters as one that has run for a minute does.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nebuladb.node.memory import plan
from nebuladb.storage.engine import Batch
from nebuladb.storage.rocks import RocksEngine, RocksMemory

FEW: Final = 10_000
MEMORY: Final = plan(128 << 20)
BATCH: Final = 500
VALUE_BYTES: Final = 300
"""A record of 256 bytes with what stands before it."""
SAMPLE: Final = 500
STRIDE: Final = 20
"""Keys from one of the sample to the next among few: no two in one block."""
WARMING: Final = 5_000
ROUNDS: Final = 9


def current(number: int) -> bytes:
    """The row of the `number`th key, in key order."""
    return b"\0\0\0\0\0\0\0\2\0\0\0\1C" + b"key/%08d" % number


def history(number: int) -> bytes:
    """The other row of a put."""
    return b"\0\0\0\0\0\0\0\2\0\0\0\1R" + number.to_bytes(8) + bytes(4)


def reads() -> int:
    """System calls of this process that read a file, so far."""
    return int(Path("/proc/self/io").read_text().partition("syscr: ")[2].split()[0])


class Database:
    """One with `keys` keys, put in random order."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.keys = keys
        self._directory = directory
        self._rng = random.Random(keys)
        self._open()
        self._load()

    def _open(self) -> None:
        memory = RocksMemory(MEMORY.block_cache, MEMORY.data_memtables)
        self._engine = RocksEngine.open_data(self._directory, memtable_bytes=MEMORY.data_memtable, memory=memory)

    def _load(self) -> None:
        order = list(range(self.keys))
        self._rng.shuffle(order)
        unflushed = 0
        for start in range(0, self.keys, BATCH):
            batch = Batch()
            for place, number in enumerate(order[start : start + BATCH], start):
                value = self._rng.randbytes(VALUE_BYTES)
                batch.put(current(number), value)
                batch.put(history(place), value)
            self._engine.write(batch)
            unflushed += batch.size
            if unflushed >= MEMORY.flush_bytes:
                self._engine.flush()
                unflushed = 0
        self._engine.flush()
        self._rest()

    def _rest(self) -> None:
        """Until no table is being rewritten."""
        busy = ("rocksdb.compaction-pending", "rocksdb.num-running-compactions")
        while any(self._engine._db.property_int_value(name) for name in busy):
            time.sleep(0.1)

    def get(self, number: int) -> None:
        """As a node does it."""
        known, value = self._engine.get_cached(current(number))
        if not known:
            value = self._engine.get_many([current(number)])[0]
        assert value is not None, number

    def time(self, numbers: Sequence[int], clock: Callable[[], float]) -> float:
        """Microseconds a get, by `clock`."""
        began = clock()
        for number in numbers:
            self.get(number)
        return (clock() - began) / len(numbers) * 1e6

    def sample(self) -> list[int]:
        """Keys to ask for, each in a block of its own."""
        stride = self.keys // SAMPLE
        first = self._rng.randrange(min(stride, STRIDE) // 2)
        numbers = [place * stride + first for place in range(SAMPLE)]
        self._rng.shuffle(numbers)
        return numbers

    def reopen(self) -> None:
        """With nothing in its caches but what some other keys' gets leave: few enough that most blocks are unread."""
        self._engine.close()
        self._open()
        self._rest()
        # Between the sample's places, and in a tenth of the blocks at most.
        for _ in range(min(WARMING, self.keys // (STRIDE * 10))):
            self.get(self._rng.randrange(self.keys))

    def drop(self) -> None:
        """Drop its tables from the page cache."""
        for path in self._directory.glob("*.sst"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # a dirty page stays
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close it."""
        self._engine.close()


def ratio(few: Database, many: Database, how: str) -> float:
    """The median ratio many : few; prints the medians too, and how often a get read a file."""
    costs: dict[Database, list[float]] = {few: [], many: []}
    read: dict[Database, int] = {few: 0, many: 0}
    clock = time.perf_counter if how == "cold" else time.process_time
    for number in range(ROUNDS):
        for database in (few, many) if number % 2 else (many, few):
            if how != "warm":
                database.reopen()
            sample = database.sample()
            if how == "warm":
                database.time(sample, clock)
            elif how == "cold":
                database.drop()
            before = reads()
            costs[database].append(database.time(sample, clock))
            read[database] += reads() - before
    found = statistics.median(late / early for early, late in zip(costs[few], costs[many], strict=True))
    few_reads, many_reads = (read[database] / SAMPLE / ROUNDS for database in (few, many))
    print(
        f"{how}: {statistics.median(costs[few]):.1f} us and {few_reads:.2f} reads among few, "
        f"{statistics.median(costs[many]):.1f} us and {many_reads:.2f} reads among many, ratio {found:.2f}",
        flush=True,
    )
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nebula-gets-") as scratch:
        few, many = Database(Path(scratch) / "few", FEW), Database(Path(scratch) / "many", options.keys)
        ratios = [f"{how}={ratio(few, many, how):.2f}" for how in ("warm", "first", "cold")]
        few.close()
        many.close()
    print(f"keys={options.keys} few={FEW}", *ratios)


if __name__ == "__main__":
    main()

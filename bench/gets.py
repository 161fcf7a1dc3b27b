"""What a get costs the engine among many keys and among few.

``python -m bench.gets --keys 1000000`` loads two stores, laid out and bounded as a node's with ``--memory 128MiB``,
with so many keys and with 10,000, and gets keys one at a time as a node does: from the cache of records, else from what
RocksDB holds in memory, else from the disk in a call that lets other threads run. Ratios many : few, each the median of
alternating rounds in one run:

* ``warm``: keys that were asked for before;
* ``first``: keys of blocks that the database has not read yet, out of the page cache;
* ``cold``: the same after the page cache was dropped (``posix_fadvise``, of the tables' files);
* ``rocksdb``: RocksDB's own memory alone, keys that were asked for before, past the cache of records.

All but ``cold`` are CPU time, so that a busy machine doesn't count; a disk's time is wall time, and wants a quiet one.
For ``first`` and ``cold`` the store is opened anew for each round, and asked for other keys, so that it knows index and
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

from nebuladb.ids import Generation, GroupId, NodeId
from nebuladb.kv.cache import RecordShare
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.loans import Misses
from nebuladb.kv.rows import Keys
from nebuladb.kv.store import Store
from nebuladb.node.memory import plan
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.server.site import apply_all
from nebuladb.storage.rocks import RocksEngine, RocksMemory

FEW: Final = 10_000
MEMORY: Final = plan(128 << 20)
BATCH: Final = 500
VALUE_BYTES: Final = 256
GROUP: Final = GroupId(2)
GENERATION: Final = Generation(1)
SAMPLE: Final = 250
STRIDE: Final = 40
"""Keys from one of the sample to the next among few: no two in one block, nor one in a block between two of them."""
WARMING: Final = 5_000
"""Other keys' gets before a round, or as many as there are blocks between the sample's."""
ROUNDS: Final = 9


def name(number: int) -> bytes:
    """The `number`th key, in key order."""
    return b"key/%08d" % number


def reads() -> int:
    """System calls of this process that read a file, so far."""
    return int(Path("/proc/self/io").read_text().partition("syscr: ")[2].split()[0])


class Database:
    """One with `keys` keys, put in random order."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.keys = keys
        self._directory = directory
        self._rng = random.Random(keys)
        self._rows = Keys(GROUP, GENERATION)
        self._first = 0
        """The least key of the sample."""
        self._open()
        self._load()

    def _open(self) -> None:
        memory = RocksMemory(MEMORY.block_cache, MEMORY.data_memtables)
        self._engine = RocksEngine.open_data(self._directory, memtable_bytes=MEMORY.data_memtable, memory=memory)
        if not Store.exists(self._engine, GROUP, GENERATION):
            Store.initialise(self._engine, GROUP, GENERATION, index=1, term=1, configuration=b"")
        self._store = Store(self._engine, GROUP, GENERATION, NodeId(0), records=RecordShare(MEMORY.records))

    def _load(self) -> None:
        order = list(range(self.keys))
        self._rng.shuffle(order)
        written = 0
        for index, start in enumerate(range(0, self.keys, BATCH), 2):
            puts = [
                kv_pb2.PutRequest(key=name(number), value=self._rng.randbytes(VALUE_BYTES)).SerializeToString()
                for number in order[start : start + BATCH]
            ]
            apply_all(self._store, [Work(index, 1, 0, [Command(Kind.PUT, put) for put in puts])])
            written += 2 * sum(map(len, puts))
            if written >= MEMORY.flush_bytes:
                self._engine.flush()
                written = 0
        self._engine.flush()
        self._rest()

    def _rest(self) -> None:
        """Until no table is being rewritten."""
        busy = ("rocksdb.compaction-pending", "rocksdb.num-running-compactions")
        while any(self._engine._db.property_int_value(name) for name in busy):
            time.sleep(0.1)

    def get(self, number: int) -> None:
        """As a node does it."""
        key = name(number)
        try:
            found = self._store.get(key)
        except Misses as misses:
            rows = misses.rows
            self._store.borrow(rows)
            self._store.supply(rows, self._engine.get_many(rows))
            found = self._store.get(key)
            self._store.give_back(rows)
        assert found is not None, number

    def peek(self, number: int) -> None:
        """Past the cache of records."""
        known, _ = self._engine.get_cached(self._rows.current + name(number))
        assert known, number

    def time(self, numbers: Sequence[int], clock: Callable[[], float], get: Callable[[int], None]) -> float:
        """Microseconds a get, by `clock`."""
        began = clock()
        for number in numbers:
            get(number)
        return (clock() - began) / len(numbers) * 1e6

    def sample(self) -> list[int]:
        """Keys to ask for, each in a block of its own."""
        numbers = [self._first + place * (self.keys // SAMPLE) for place in range(SAMPLE)]
        self._rng.shuffle(numbers)
        return numbers

    def reopen(self) -> None:
        """With nothing in its caches but what other keys' gets leave, in blocks between the sample's."""
        self.close()
        self._open()
        self._rest()
        stride = self.keys // SAMPLE
        self._first = self._rng.randrange(stride)
        for _ in range(min(WARMING, self.keys // STRIDE)):
            place = self._rng.randrange(SAMPLE - 1) * stride + self._first
            self.get(place + self._rng.randint(STRIDE // 2, stride - STRIDE // 2))

    def fill(self, numbers: Sequence[int]) -> None:
        """Have RocksDB hold the blocks of these keys in memory."""
        for number in numbers:
            self._engine.get_many([self._rows.current + name(number)])

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
        self._store.close()
        self._engine.close()


def ratio(few: Database, many: Database, how: str) -> float:
    """The median ratio many : few; prints the medians too, and how often a get read a file."""
    costs: dict[Database, list[float]] = {few: [], many: []}
    read: dict[Database, int] = {few: 0, many: 0}
    clock = time.perf_counter if how == "cold" else time.process_time
    for number in range(ROUNDS):
        for database in (few, many) if number % 2 else (many, few):
            if how in ("first", "cold"):
                database.reopen()
            sample = database.sample()
            get = database.get
            if how == "warm":
                database.time(sample, clock, get)
            elif how == "rocksdb":
                database.fill(sample)
                get = database.peek
            elif how == "cold":
                database.drop()
            before = reads()
            costs[database].append(database.time(sample, clock, get))
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
        ratios = [f"{how}={ratio(few, many, how):.2f}" for how in ("warm", "first", "cold", "rocksdb")]
        few.close()
        many.close()
    print(f"keys={options.keys} few={FEW}", *ratios)


if __name__ == "__main__":
    main()

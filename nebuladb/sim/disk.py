"""A node's two databases, on a disk that takes its time, and what is left of them after a crash."""

from __future__ import annotations

from collections.abc import Callable, Container
from random import Random

from nebuladb.ids import BatchId
from nebuladb.sim.core import Core
from nebuladb.sim.faults import SLOW_SYNC_MS
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.violation import require
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.memory import MemoryEngine


class WatchedLog(LogStore):
    """The product's log; the oracles see what is written to it."""

    def __init__(self, engine: MemoryEngine, place: int, logs: Logs) -> None:
        super().__init__(engine)
        self._memory = engine
        self._place = place
        self._logs = logs

    def write(self, batch: LogBatch, flushed: BatchId) -> None:
        known = self._groups
        overwrites = False
        for write in batch.writes:
            if write.entries and write.group in known:
                overwrites |= write.entries[0].index <= known[write.group].last()[0]
        super().write(batch, flushed)
        if overwrites:
            self._reopen(batch)
        self._logs.written(self._place, self._memory.position, batch, self)

    def _reopen(self, batch: LogBatch) -> None:
        """Entries were overwritten: whoever started from these very rows must find the log that there is."""
        found = LogStore(self._memory)
        for write in batch.writes:
            here, there = self.reader(write.group).last(), found.reader(write.group).last()
            require(here == there, f"group {write.group}: the log on the disk ends at {there}, not at {here}")


class Disk:
    """`sync` begins what ends after a drawn time, as the daemon's thread does: one at a time; it covers what was
    written before it began.

    `lying`: it says so without having done it (for the simulator's self-test).
    """

    def __init__(self, core: Core, place: int, logs: Logs, *, lying: bool = False) -> None:
        self._core = core
        self._place = place
        self._logs = logs
        self._lying = lying
        self._rng = core.stream(f"disk {place}")
        self.log = MemoryEngine(wal=True)
        self.data = MemoryEngine(wal=False)
        self.hangs_until = 0
        """Virtual ms before which no sync ends."""
        self.slow_until = 0
        """Virtual ms up to which every sync takes long."""
        self.rests_until = 0
        """Virtual ms up to which whoever writes much may rest: as long as it took what hung, or was slow."""
        self.cramped = False
        """While it is short of space, a compaction found no room."""
        self._wiped = False
        self._lives = 0
        self._wanted = 0
        self._syncing = False

    def open_log(self) -> WatchedLog:
        """The log as it is on the disk now."""
        store = WatchedLog(self.log, self._place, self._logs)
        if not self._wiped:
            self._logs.opened(self._place, store)
        return store

    def sync(self, batch: int, done: Callable[[int], None]) -> None:
        """Batches up to `batch` are written; `done` is called with the newest one that is durable."""
        self._wanted = batch
        if not self._syncing:
            self._begin(done)

    def _begin(self, done: Callable[[int], None]) -> None:
        self._syncing = True
        position, batch = self.log.position, self._wanted
        self._core.scheduler.after(self.time(), self._end, self._lives, position, batch, done)

    def _end(self, life: int, position: int, batch: int, done: Callable[[int], None]) -> None:
        if life != self._lives:
            return
        if not self._lying:
            self.log.make_durable(position)
        self._logs.durable(self._place, position)
        self._syncing = False
        if self._wanted > batch:
            self._begin(done)
        done(batch)

    def time(self) -> int:
        """What a sync or flush that begins now takes, in ms."""
        faults, now = self._core.faults, self._core.scheduler.now
        strained, wait = self.slow_until > now, max(0, self.hangs_until - now)
        slow = self._rng.random() < faults.slow_sync or strained
        time = wait + self._rng.randrange((SLOW_SYNC_MS if slow else faults.sync) + 1)
        if wait or strained:
            self.rests_until = max(self.rests_until, now + 2 * time)
        return time

    def chill(self, rng: Random, cold: Container[bytes] = ()) -> None:
        """Until `warm`, some rows are on the disk only, and those of `cold` if any are."""
        share = self._core.faults.cold
        if share:
            self.data.chill(lambda row: rng.random() < share or row in cold)

    def warm(self) -> None:
        """All rows are in memory again."""
        self.data.chill(None)

    def crash(self, *, power: bool) -> None:
        """The process is gone. With the `power`, so is any of what was not synced; else the operating system still has
        what was written to the log. Of the data, which has no WAL, only what was flushed, or by luck more, stays."""
        if not power and not self._lying:
            self.log.make_durable(self.log.position)
        self.log = self.log.crash(self._rng)
        self.data = self.data.crash(self._rng)
        self._lives += 1
        self._wanted = 0
        self._syncing = False

    def renew(self) -> None:
        """Another node's disk takes its place; `crash` came before."""
        self.log = MemoryEngine(wal=True)
        self.data = MemoryEngine(wal=False)

    def lose_data(self) -> None:
        """The data is gone, the log is not."""
        self.data = MemoryEngine(wal=False)

    def wipe(self, *, data: bool = True) -> None:
        """Everything on it is gone, or the log only. For the oracles it counts as it was: a majority survives it."""
        self._wiped = True
        self.log = MemoryEngine(wal=True)
        if data:
            self.data = MemoryEngine(wal=False)

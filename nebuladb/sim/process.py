"""What of the daemon runs beside a node's turns: the reads that wait for the disk, clients that wait for a compaction,
the data store's flushes and compactions. All of it is the product's, on a loop of virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from nebuladb.kv.store import Store
from nebuladb.node.looks import Looks
from nebuladb.node.node import Node
from nebuladb.node.reclaims import Reclaims
from nebuladb.node.rows_asked import RowsAsked, Values
from nebuladb.node.tables import Tables
from nebuladb.node.turn import Flush
from nebuladb.sim.core import Core
from nebuladb.sim.disk import Disk
from nebuladb.sim.faults import FETCH_MS
from nebuladb.sim.loop import Loop
from nebuladb.storage.memory import MemoryEngine


class SlowFetcher:
    """Stands for the fetcher's threads: each part of what is asked for is read when the disk comes to it, and what it
    has read may be old when the loop hears of it, for the node writes on."""

    def __init__(self, core: Core, engine: MemoryEngine, rng: Random) -> None:
        self._core = core
        self._engine = engine
        self._rng = rng
        self.over = False
        """The process is dead."""

    def fetch(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        """As `node.fetcher`."""

        def read(values: Values | BaseException) -> None:
            self._core.scheduler.after(self._rng.randrange(FETCH_MS), self._hand_over, done, values)

        asked = RowsAsked(rows, read)
        for part in range(len(asked.parts)):
            self._core.scheduler.after(1 + self._rng.randrange(FETCH_MS), self._read, asked, part)

    def _read(self, asked: RowsAsked, part: int) -> None:
        if not self.over:
            asked.read(part, self._engine)

    def _hand_over(self, done: Callable[[Values | BaseException], object], values: Values | BaseException) -> None:
        if not self.over:
            done(values)


class Process:
    """Of one life of a machine. `runs` is the loop's; `store` as `Pump.store`; `flushed` is told what a flush that is
    done has made durable."""

    def __init__(
        self,
        core: Core,
        disk: Disk,
        node: Node,
        rng: Random,
        runs: Callable[[Callable[[], None]], None],
        store: Callable[[int], Store],
        wake: Callable[[], None],
        failed: Callable[[BaseException], None],
        flushed: Callable[[Flush], None],
    ) -> None:
        self.loop = Loop(core, rng, runs, disk.time)
        self.fetcher = SlowFetcher(core, disk.data, rng)
        self._node = node
        self._flushed = flushed
        self._flush: Flush | None = None
        """Under way."""
        with self.loop:
            self.looks = Looks(self.fetcher, store)
            self.reclaims = Reclaims()
            self.tables = Tables(node, wake, failed, self._writes)

    def end(self) -> None:
        """It is dead."""
        self.fetcher.over = True
        self.loop.close()

    def _writes(self) -> None:
        """A flush begins now, or has ended."""
        flush = self._flush
        if flush is None:
            node = self._node
            applied = {group: data.store.index for group, data in node.groups.items()}
            self._flush = Flush(applied, node.snapshots.to_flush(), [])
        else:
            self._flush = None
            self._flushed(flush)

"""Log batches: the one that gathers, and those on their way to the disk."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from nebuladb.env import probe
from nebuladb.ids import BatchId
from nebuladb.node.frame import Envelope
from nebuladb.raft import DurableMark
from nebuladb.storage.log_batch import LogBatch

MAX_BATCH_BYTES: Final = 8 << 20
"""A log batch takes no further group once it is this large, but those of which it takes a hard state without entries,
so that no vote waits behind a bulk load (S31); the rest goes with the next."""
MAX_UNSYNCED_BYTES: Final = 64 << 20
"""Of any node; one with little memory has a lower bound (`Batches.limit`)."""
FLOOD: Final = 2
"""So many times that bound, or a whole batch's, no node reaches with a disk that works; see `Batches.flooded`."""
MAX_HELD: Final = 10_000
"""Messages that wait for one batch to be durable. While a disk hangs more are dropped, which is a loss like any other:
in a term that isn't durable yet every heartbeat and read round of the leader adds a reply."""
MAX_BATCHES_IN_FLIGHT: Final = 1
"""Log batches on their way to the disk; while there are so many, new writes of all groups gather for the next one. A
second one beside it made batches half as large: 0.65 of the puts at 256 in flight."""
HOLD_TICKS: Final = 2
"""For how long new writes wait behind a batch that is on its way to the disk (`Batches.crowded`)."""


@dataclass(slots=True)
class InFlight:
    """A batch on its way to the disk: what to tell Raft, and what may be sent, once it is there (S2, S3)."""

    batch: int
    tick: int
    size: int
    marks: list[tuple[int, DurableMark]]
    held: list[tuple[int, Envelope]]


class Batches:
    """Invariant: batches become durable in the order of their ids."""

    __slots__ = ("_inflight", "_next", "durable", "gathering", "limit", "unsynced")

    def __init__(self, first: int, limit: int) -> None:
        self.durable = BatchId(first - 1)
        """The newest batch known to be durable."""
        self.limit = min(limit, MAX_UNSYNCED_BYTES)
        """Log bytes on their way to the disk; past them no new proposal is made: a stalled disk is back-pressure."""
        self.unsynced = 0
        """How many there are."""
        self._next = first
        self.gathering: LogBatch | None = None
        """What will be written next; None while nothing is."""
        self._inflight: deque[InFlight] = deque()

    @property
    def full(self) -> bool:
        """Whether what gathers takes no further entries."""
        return self.gathering is not None and self.gathering.size > MAX_BATCH_BYTES

    @property
    def flooded(self) -> bool:
        """Whether appends of leaders are to be dropped as well: each bounds what it has on its way here, but there may
        be a thousand of them, and a disk that hangs would gather it all in memory."""
        return self.unsynced > FLOOD * max(self.limit, MAX_BATCH_BYTES)

    def current(self, tick: int) -> LogBatch:
        """The batch that gathers; a new one is of `tick`."""
        if self.gathering is None:
            self.gathering = LogBatch(BatchId(self._next))
            self._inflight.append(InFlight(self._next, tick, 0, [], []))
            self._next += 1
        return self.gathering

    def take(self) -> LogBatch | None:
        """What gathered, to be written."""
        batch, self.gathering = self.gathering, None
        if batch is not None:
            self._inflight[-1].size = batch.size
            self.unsynced += batch.size
        return batch

    def mark(self, group: int, mark: DurableMark) -> None:
        """Tell `group` when what gathers is durable."""
        self._inflight[-1].marks.append((group, mark))

    def hold(self, messages: list[tuple[int, Envelope]]) -> bool:
        """Keep messages until the newest batch, and so every older one, is durable; False: there is none (S3)."""
        if not self._inflight:
            return False
        held = self._inflight[-1].held
        held += messages
        if len(held) > MAX_HELD:
            probe("held messages dropped")
            del held[MAX_HELD:]
        return True

    def age(self, tick: int) -> int:
        """For how many ticks the oldest batch has been on its way."""
        return tick - self._inflight[0].tick if self._inflight else 0

    def crowded(self, tick: int) -> bool:
        """Whether new writes wait, to share the next batch and frames: batches are on their way to the disk already.

        Only for a tick or two, for with a disk that hangs a majority of the others still commits (thesis 10.2.1).
        """
        if self.unsynced > self.limit:
            return True
        # The one that gathers isn't on its way: it takes the writes of all groups.
        under_way = len(self._inflight) - (self.gathering is not None)
        return under_way >= MAX_BATCHES_IN_FLIGHT and self.age(tick) < HOLD_TICKS

    def finished(self, batch: int) -> list[InFlight]:
        """A sync that began after `batch` was written is done: what waited for it and for those before."""
        finished = []
        while self._inflight and self._inflight[0].batch <= batch:
            done = self._inflight.popleft()
            self.unsynced -= done.size
            finished.append(done)
        if batch > self.durable:
            self.durable = BatchId(batch)
        return finished

"""One group's linearizable reads on this node: queued, confirmed by a ReadIndex round, ready when applied (S7, S8)."""

from __future__ import annotations

from typing import Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError, NoLeader, TooManyRequests, Unavailable

MAX_READS: Final = 50_000
"""Reads of one group that may wait on this node."""
MAX_ROUNDS: Final = 2
"""Rounds in flight; reads that come meanwhile share the next one."""

LATE: Final = "no leader confirmed the read in time; try again, or read with serializable"
FULL: Final = "this node's disk is full, and it is behind in this shard until there is room: ask another node"

ReadOutcomes = list[tuple[int, NebulaError | None]]
"""(request id, None: it may be served now; else why it failed)"""
_Batch = list[tuple[int, int]]
"""(request id, deadline in ms)"""


class Reads:
    """A read waits in the queue, then in a round (asked for), then for an index (confirmed, not yet applied)."""

    def __init__(self) -> None:
        self.queue: _Batch = []
        """Those that no round is asked for yet; for others to look whether there are any."""
        self._rounds: dict[int, _Batch] = {}
        self.awaited: list[tuple[int, _Batch]] = []
        """Confirmed, with the index that is to be applied first; likewise."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, request: int, deadline: int) -> None:
        """Queue a read. Raises `TooManyRequests` past the bound."""
        if self._count >= MAX_READS:
            raise TooManyRequests("this node has too many reads in flight; back off and try again")
        self.queue.append((request, deadline))
        self._count += 1

    @property
    def wants_round(self) -> bool:
        """Whether a round should start now."""
        return bool(self.queue) and len(self._rounds) < MAX_ROUNDS

    def start(self, context: int) -> None:
        """All that wait in the queue go with round `context`."""
        self._rounds[context], self.queue = self.queue, []

    def confirmed(self, context: int, index: int, applied: int) -> ReadOutcomes:
        """Round `context` says: serve at `applied` >= `index`; a negative index: it failed, so ask again."""
        batch = self._rounds.pop(context, None)
        if batch is None:
            return []
        if index < 0:
            probe("read round failed")
            self.queue[:0] = batch  # a read may always be asked again
            return []
        if index <= applied:
            return self._serve(batch)
        self.awaited.append((index, batch))
        return []

    def applied(self, index: int) -> ReadOutcomes:
        """Everything confirmed at or below `index` is ready."""
        ready: ReadOutcomes = []
        waiting = []
        for needed, batch in self.awaited:
            if needed <= index:
                ready += self._serve(batch)
            else:
                waiting.append((needed, batch))
        self.awaited = waiting
        return ready

    def give_up(self, index: int) -> ReadOutcomes:
        """Those confirmed above `index` fail: what they wait for isn't taken here, for want of space."""
        given_up = [request for needed, batch in self.awaited if needed > index for request, _ in batch]
        if not given_up:
            return []
        probe("read refused for want of space")
        self.awaited = [confirmed for confirmed in self.awaited if confirmed[0] <= index]
        self._count -= len(given_up)
        return [(request, Unavailable(FULL)) for request in given_up]

    def expire(self, now: int) -> ReadOutcomes:
        """Reads past their deadline at `now` (ms) fail."""
        late: ReadOutcomes = []

        def keep(batch: _Batch) -> _Batch:
            kept = [read for read in batch if read[1] > now]
            if len(kept) < len(batch):
                late.extend((read[0], NoLeader(LATE)) for read in batch if read[1] <= now)
            return kept

        self.queue = keep(self.queue)
        self._rounds = {context: kept for context, batch in self._rounds.items() if (kept := keep(batch))}
        self.awaited = [(index, kept) for index, batch in self.awaited if (kept := keep(batch))]
        self._count -= len(late)
        return late

    def close(self) -> ReadOutcomes:
        """The replica goes away."""
        return self.expire(1 << 62)

    def _serve(self, batch: _Batch) -> ReadOutcomes:
        self._count -= len(batch)
        return [(request, None) for request, _ in batch]

"""Room that deletions give back, on a disk that is short of it: when the data store is flushed and compacted for that.

RocksDB gives back what was deleted when it happens to compact the tables that hold it, which takes several flushes, of
a memtable's half each. Deletions are a few bytes a row, and a node that is short of space takes hardly anything else:
it could wait for ever for what its operator has deleted. So while it is short, whatever was deleted is flushed, and the
tables there are compacted, no others: rewriting all would take longer, and more room.
"""

from __future__ import annotations

from typing import Final

from nebuladb.env import probe
from nebuladb.ids import Generation, GroupId
from nebuladb.kv.rows import KEY_AT, group_span
from nebuladb.kv.store import Store
from nebuladb.node.disk import Space
from nebuladb.storage.engine import Engine
from nebuladb.storage.spans import Span, Spans

PAUSE_MS: Final = 2_000
"""After a compaction, at least: what goes on being deleted is compacted together."""
REST: Final = 4
"""Or as many times as long as it took: the disk is for others, too."""
FAILED_MS: Final = 10_000
LONGEST_MS: Final = 32 * FAILED_MS
"""After one that found no room, and twice as long after each further one, at most."""


class Vacuum:
    """Of one node. Times are milliseconds of the tick's clock.

    What was deleted goes through two hands: a flush that `take` begins makes it durable, then its driver compacts what
    `begin` says. A driver that never does leaves it at one flush.
    """

    def __init__(self, data: Engine) -> None:
        self._data = data
        self.deleted = Spans(KEY_AT)
        """Where rows were deleted that no flush was asked for yet: of each shard, by type of row. First, what earlier
        processes deleted and didn't compact."""
        for span in data.deleted():
            self.deleted.add(*span)
        self._flushed: list[Span] = []
        self._running: list[Span] = []
        self._begun = self._due = self._pause = 0

    def destroy(self, group: GroupId, generation: Generation) -> None:
        """`Store.destroy`, of which it takes notice. Raises `WriteStalled`."""
        Store.destroy(self._data, group, generation)
        self.deleted.add(*group_span(group, generation))

    def wants_flush(self, space: Space, now: int) -> bool:
        """Whether what was deleted should be flushed, with so much space."""
        waits = bool(self._flushed or self._running)
        return bool(self.deleted) and space is not Space.PLENTY and now >= self._due and not waits

    def take(self, space: Space, now: int) -> list[Span]:
        """What a flush that begins now has of it, for `flushed`; nothing where it isn't wanted."""
        return self.deleted.take() if self.wants_flush(space, now) else []

    def flushed(self, spans: list[Span]) -> None:
        """That flush is done."""
        self._flushed += spans

    @property
    def ready(self) -> bool:
        """Whether a compaction should begin."""
        return bool(self._flushed) and not self._running

    def begin(self, now: int) -> list[Span]:
        """What is to be compacted (`Engine.compact`); `end` comes when that is over."""
        probe("deleted rows compacted")
        self._running, self._flushed, self._begun = self._flushed, [], now
        return self._running

    def end(self, now: int, *, whole: bool) -> None:
        """It is over. Not `whole`: it met no room, and is tried again later."""
        if whole:
            self._pause = 0
            self._due = now + max(PAUSE_MS, REST * (now - self._begun))
        else:
            probe("no room to compact in")
            self._pause = min(2 * self._pause or FAILED_MS, LONGEST_MS)
            self._due = now + self._pause
            for span in self._running:
                self.deleted.add(*span)
        self._running = []

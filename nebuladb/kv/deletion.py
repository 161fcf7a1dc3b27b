"""Physical deletion: what compaction superseded, in slices, in the background.

Nothing logical depends on how far it got. A compaction at floor f makes unreadable every record that another one at or
below f superseded, and every tombstone below f. (All that was changed *at* f stays until the floor rises, tombstones
and what the same revision superseded as well: a watch may start at f.) Walking R from the last floor to this one meets
exactly the rows that tell which those are.
"""

from __future__ import annotations

from typing import Final

from nebuladb.errors import Corruption
from nebuladb.kv.limits import weight
from nebuladb.kv.loans import Misses
from nebuladb.kv.rows import DELETION_ROW, FORMAT, KEY_AT, POSITION, decode_record, decode_row
from nebuladb.kv.source import EngineSource, close
from nebuladb.storage.engine import Batch
from nebuladb.storage.spans import Spans

MIN_RUN: Final = 16
"""Rows side by side that are worth a range tombstone: each of those costs every later read a little."""
FIRST_ROWS: Final = 64
"""Rows that are asked for at once, to begin with: how large they are shows only when they are here. The next step asks
for twice as many as the last one got through."""
LOOKED_PER_DEAD: Final = 4
"""Rows looked at (as `weight` counts) per row to delete, in search of runs; further ones are deleted one by one."""


class Deletion:
    """Where the walk stands: at (`main`, `sub`), on its way to the end of `target`, which is or was the floor.

    It is kept in the D row, apart from the replicated state: two replicas may differ in it.
    """

    def __init__(self, source: EngineSource, data: bytes | None) -> None:
        """`data`: the D row."""
        self._source = source
        self._target, self._main, self._sub = 0, 1, 0
        self._pace = FIRST_ROWS
        self.deleted = Spans(KEY_AT)
        """Where rows were deleted, or overwritten long ago; whoever makes the room of them good takes them away."""
        self.buried = 0
        """Keys of which nothing is left; whoever counts them takes that away."""
        if data is not None:
            if len(data) != DELETION_ROW.size or data[0] != FORMAT:
                raise Corruption("the deletion row is damaged")
            _, self._target, self._main, self._sub = DELETION_ROW.unpack(data)

    def behind(self, floor: int) -> bool:
        """Whether anything is left to delete."""
        return self._target < floor or self._main <= self._target

    def passed(self, revision: int) -> bool:
        """Whether what a compaction at `revision` superseded is deleted."""
        return self._target >= revision and self._main > revision

    def step(self, floor: int, budget: int) -> tuple[Batch, tuple[int, int, int]]:
        """Up to `budget` rows of work, or as many bytes as those may be (`weight`), as a batch, and the position to
        `advance` to once the batch is written.

        Raises `Misses` before it scans what isn't in memory: an iterator would hold the interpreter's lock meanwhile.
        """
        target, main, sub = self._target, self._main, self._sub
        if main > target:
            # The rows of the old target are met again, for their tombstones: those are below the new target.
            target, main, sub = floor, target, 0
        keys, batch, budget = self._source.keys, Batch(), min(budget, self._pace)
        if missing := [row for row in self._rows(main, sub, target, budget) if self._source.misses(row)]:
            raise Misses(missing)
        rows = self._source.scan(keys.record_key(main, sub), keys.record_key(target + 1, 0))
        position = (target, target + 1, 0)
        left, dead, pace = budget, set[bytes](), FIRST_ROWS
        for visited, (row, data) in enumerate(rows):
            here = POSITION.unpack_from(row, KEY_AT)
            if left <= 0 or len(missing) >= FIRST_ROWS:
                close(rows)
                position, pace = (target, here[0], here[1]), 2 * visited
                break
            left -= weight(data)
            try:
                left -= self._visit(batch, dead, row, data, target)
            except Misses as misses:
                missing += misses.rows
        if missing:
            raise Misses(missing)
        self._pace = pace
        self._bury(batch, dead)
        self.deleted.deleted(batch)
        batch.put(keys.deletion, DELETION_ROW.pack(FORMAT, *position))
        return batch, position

    def _rows(self, main: int, sub: int, target: int, budget: int) -> list[bytes]:
        """R rows that the next step meets, as far as that can be told: most revisions have one change."""
        key = self._source.keys.record_key
        if sub:
            return [key(main, place) for place in range(sub, sub + budget)]
        return [key(revision, 0) for revision in range(main, min(main + budget, target + 1))]

    def advance(self, position: tuple[int, int, int]) -> None:
        """The batch of `step` is written."""
        self._target, self._main, self._sub = position

    def _bury(self, batch: Batch, dead: set[bytes]) -> None:
        """Delete C rows, those that lie side by side as one range: a scan that meets a million single tombstones keeps
        the loop for a second, and after a range delete all rows of a step lie side by side."""
        if not dead:
            return
        self.buried += len(dead)
        run: list[bytes] = []
        looked, most = 0, LOOKED_PER_DEAD * len(dead)
        rows = self._source.scan(min(dead), max(dead) + b"\0")
        for row, data in rows:
            if looked >= most:
                break
            looked += weight(data)
            if row in dead:
                dead.discard(row)
                run.append(row)
            elif run:
                delete_run(batch, run)
                run = []
        close(rows)
        delete_run(batch, run)
        for row in sorted(dead):
            batch.delete(row)

    def _visit(self, batch: Batch, dead: set[bytes], row: bytes, data: bytes, target: int) -> int:
        """Delete what an R row supersedes; the weight of what else was read for it."""
        keys = self._source.keys
        key, record = decode_row(data)
        below = record.main < target
        # What a revision at the floor changed twice stays with it: a watch that starts there is told all of it.
        if record.past_main and not record.past_deleted and (below or record.past_main < record.main):
            batch.delete(keys.record_key(record.past_main, record.past_sub))
            self.deleted.add(keys.current + key, keys.current + key + b"\0")
        if record.version == 0 and below:
            batch.delete(row)
            newest = self._source.get(keys.current + key)
            if newest is not None:
                current = decode_record(newest)
                if (current.main, current.sub) == (record.main, record.sub):
                    dead.add(keys.current + key)
                return weight(newest) - 1
        return 0


def delete_run(batch: Batch, rows: list[bytes]) -> None:
    """Delete rows between which there is no other, ascending."""
    if len(rows) >= MIN_RUN:
        batch.delete_range(rows[0], rows[-1] + b"\0")
    else:
        for row in rows:
            batch.delete(row)

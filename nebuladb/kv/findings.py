"""What a transaction that begins anew has found in the history already.

It reads from memory alone, and begins anew for each row that it lacks. Of a key with a thousand versions above the one
that it asks for, each is known when the one before it is here: with 40 such keys it would look at 800 million rows.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nebuladb.kv.limits import MAX_TXN_BYTES, MAX_TXN_ROWS
from nebuladb.kv.loans import FIRST_ROWS, Misses
from nebuladb.kv.rows import Record
from nebuladb.kv.source import Source
from nebuladb.kv.trail import Trail
from nebuladb.kv.view import at

_Found = tuple[Record | None, int, int]
_Start = tuple[int, int, int]
"""Main and sub of a key's record, and the revision that is looked for. Rows of the history never change, so what is
found from there is the same at any time."""

AT_ONCE: Final = FIRST_ROWS


class _Look(NamedTuple):
    """One that isn't at its end."""

    key: bytes
    newest: Record
    most: int
    trail: Trail


class Findings:
    """Of one store, for one transaction at a time."""

    __slots__ = ("_ended", "_looks", "_read", "_steps", "_whose")

    def __init__(self) -> None:
        self._ended: dict[_Start, tuple[int, _Found]] = {}
        """What they came to, and how many bytes they were allowed."""
        self._looks: dict[_Start, _Look] = {}
        """Those that lacked a row, in the order in which they were begun."""
        self._steps = self._read = 0
        """Look-ups, and their bytes."""
        self._whose = 0

    def begin(self, whose: int) -> None:
        """A transaction of this name begins, perhaps anew. What was found for another one is forgotten."""
        if whose != self._whose:
            self.forget()
            self._whose = whose

    def forget(self) -> None:
        """The transaction is over."""
        if self._ended or self._looks:
            self._ended.clear()
            self._looks.clear()
            self._steps = self._read = 0

    def at(
        self, source: Source, key: bytes, record: Record | None, revision: int, most: int, __: Trail | None = None
    ) -> _Found:
        """As ``view.at``, which it may ask."""
        if record is None or record.main <= revision:
            return record if record is not None and record.version else None, 0, 0
        start = record.main, record.sub, revision
        ended = self._ended.get(start)
        if ended is None:
            look = self._looks.get(start) or _Look(key, record, most, Trail())
            self._looks[start] = look
            ended = self._follow(source, start, look)
        allowed, found = ended
        visible, _, read = found
        if allowed == most or (read <= most and (visible is None or visible.main <= revision)):
            return found
        # It goes beyond `most`: it ends there on every replica, whether it lacked a row here or not.
        return at(source, key, record, revision, most)

    def go_on(self, source: Source) -> None:
        """Go on with what lacked a row, before the transaction begins anew. Raises `Misses` until it is through."""
        missing: list[bytes] = []
        # More than a transaction may look at: it will be refused. What comes first decides that.
        alone = self._steps > MAX_TXN_ROWS or self._read > MAX_TXN_BYTES
        for start, look in list(self._looks.items()):
            try:
                self._follow(source, start, look)
            except Misses as misses:
                missing += misses.rows
            if alone or len(missing) >= AT_ONCE:
                break
        if missing:
            raise Misses(missing)

    def _follow(self, source: Source, start: _Start, look: _Look) -> tuple[int, _Found]:
        trail = look.trail
        steps, read = trail.steps, trail.read
        try:
            record, *_ = at(source, look.key, look.newest, start[2], look.most - read, trail)
        finally:
            self._steps += trail.steps - steps
            self._read += trail.read - read
        del self._looks[start]
        ended = self._ended[start] = look.most, (record, trail.steps, trail.read)
        return ended

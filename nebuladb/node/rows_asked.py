"""Rows that are read from the disk in parts, by whoever has a thread for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from nebuladb.kv.loans import Room, fetched
from nebuladb.storage.engine import Engine

ROWS_AT_ONCE: Final = 64
"""What asks for more is divided."""

Values = list[bytes | None]


class RowsAsked:
    """One request; the last part to come hands them over, to `done`, as what went wrong with one does."""

    def __init__(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        self.rows = rows
        self._at_once = ROWS_AT_ONCE
        self.parts: list[Values] = [[] for _ in range(0, len(rows), self._at_once)]
        """What was read of each, perhaps not all of it, or nothing."""
        self._left = len(self.parts)
        self._done = done
        self._room = Room()
        self._counting = threading.Lock()

    def read(self, part: int, engine: Engine) -> None:
        """Read a part, unless what came of others is enough. Each is read once, in any thread."""
        problem: BaseException | None = None
        try:
            if not part or self._spend(0) > 0:
                rows = self.rows[part * self._at_once : (part + 1) * self._at_once]
                self.parts[part] = fetched(engine.get_many, rows, self._spend)
        except BaseException as error:
            problem = error
        if self._ended(problem):
            self._done(self._values if problem is None else problem)

    def _spend(self, size: int) -> int:
        """Bytes have come; how many more may, of all parts together."""
        with self._counting:
            return self._room.spend(size)

    def _ended(self, problem: BaseException | None) -> bool:
        """A part has come, or failed; whether that is what `done` waits for."""
        with self._counting:
            if problem is None:
                self._left -= 1
                return self._left == 0
            first = self._left > 0
            self._left = 0
            return first

    @property
    def _values(self) -> Values:
        """Of the first rows: up to the first that wasn't read."""
        values: Values = []
        for place, part in enumerate(self.parts):
            values += part
            if len(values) < min((place + 1) * self._at_once, len(self.rows)):
                break
        return values

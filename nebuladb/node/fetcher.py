"""Threads that read rows from the disk, so that the loop doesn't."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

from nebuladb.kv.loans import Room, fetched
from nebuladb.storage.engine import Engine

THREADS: Final = 4
"""A disk that takes 50 ms a read then still gives 80 rows a second; beside a quick one the fourth is idle. They hold no
interpreter's lock while they wait."""
ROWS_AT_ONCE: Final = 64
"""A request of more is divided among the threads."""

Values = list[bytes | None]


class _Request:
    """Rows that are read in parts; the last part to come hands them over."""

    def __init__(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        self.rows = rows
        self.parts: list[Values] = [[] for _ in range(0, len(rows), ROWS_AT_ONCE)]
        """What was read of each, perhaps not all of it, or nothing."""
        self.left = len(self.parts)
        self.done = done
        self._room = Room()
        self._counting = threading.Lock()

    def spend(self, size: int) -> int:
        """Bytes have come; how many more may, of all parts together."""
        with self._counting:
            return self._room.spend(size)

    def ended(self, problem: BaseException | None) -> bool:
        """A part has come, or failed; whether that is what `done` waits for."""
        with self._counting:
            if problem is None:
                self.left -= 1
                return self.left == 0
            first = self.left > 0
            self.left = 0
            return first

    @property
    def values(self) -> Values:
        """Of the first rows: up to the first that wasn't read."""
        values: Values = []
        for place, part in enumerate(self.parts):
            values += part
            if len(values) < min((place + 1) * ROWS_AT_ONCE, len(self.rows)):
                break
        return values


class Fetcher:
    """Reads with `Engine.get_many`. `done` of a request is called once, in one of the threads: with the values, in
    order, of its first rows, one at least, after which about `FETCH_BYTES` have come; or with what went wrong. Who asks
    again for the others asks for as much as it can hold. What is asked for is bounded by those who ask: slices, and
    reads in progress."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # One part wakes one thread; with a `Condition` all four would come and ask the loop for the interpreter.
        self._parts: SimpleQueue[tuple[_Request, int] | None] = SimpleQueue()
        """(request, where the part begins); None: a thread ends."""
        self._threads: list[threading.Thread] = []

    def fetch(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        """Read `rows`, at least one."""
        request = _Request(rows, done)
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name=f"fetcher-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        for start in range(0, len(rows), ROWS_AT_ONCE):
            self._parts.put((request, start))

    @property
    def waiting(self) -> int:
        """Parts, of up to `ROWS_AT_ONCE` rows, that no thread has begun."""
        return self._parts.qsize()

    def stop(self) -> None:
        """Read what is asked for, then end. Blocks. The engine may be closed after it."""
        for _ in self._threads:
            self._parts.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (part := self._parts.get()) is not None:
            request, start = part
            problem: BaseException | None = None
            try:
                if not start or request.spend(0) > 0:
                    rows = request.rows[start : start + ROWS_AT_ONCE]
                    request.parts[start // ROWS_AT_ONCE] = fetched(self._engine.get_many, rows, request.spend)
            except BaseException as error:
                problem = error
            if request.ended(problem):
                request.done(request.values if problem is None else problem)

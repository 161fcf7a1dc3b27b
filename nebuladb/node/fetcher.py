"""Threads that read rows from the disk, so that the loop doesn't."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

from nebuladb.storage.engine import Engine

THREADS: Final = 4
"""A disk that takes 50 ms a read then still gives 80 rows a second; beside a quick one the fourth is idle. They hold no
interpreter's lock while they wait."""
ROWS_AT_ONCE: Final = 64
"""A request of more is divided among the threads."""

Values = list[bytes | None]


class _Request:
    """Rows that come in parts; the last part to come hands them over."""

    def __init__(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        self.rows = rows
        self.values: Values = [None] * len(rows)
        self.left = -(-len(rows) // ROWS_AT_ONCE)
        self.done = done


class Fetcher:
    """Reads with `Engine.get_many`. `done` of a request is called once, in one of the threads: with the values, in
    order, or with what went wrong. What is asked for is bounded by those who ask: slices, and reads in progress."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # One part wakes one thread; with a `Condition` all four would come and ask the loop for the interpreter.
        self._parts: SimpleQueue[tuple[_Request, int] | None] = SimpleQueue()
        """(request, where the part begins); None: a thread ends."""
        self._counting = threading.Lock()
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
            rows = request.rows[start : start + ROWS_AT_ONCE]
            problem: BaseException | None = None
            try:
                request.values[start : start + len(rows)] = self._engine.get_many(rows)
            except BaseException as error:
                problem = error
            with self._counting:
                first_problem = problem is not None and request.left > 0
                request.left = 0 if problem is not None else request.left - 1
                last = problem is None and request.left == 0
            if problem is not None and first_problem:
                request.done(problem)
            elif last:
                request.done(request.values)

"""Threads that read rows from the disk, so that the loop doesn't."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

from nebuladb.node.rows_asked import RowsAsked, Values
from nebuladb.storage.engine import Engine

THREADS: Final = 4
"""A disk that takes 50 ms a read then still gives 80 rows a second; beside a quick one the fourth is idle. They hold no
interpreter's lock while they wait."""


class Fetcher:
    """Reads with `Engine.get_many`. `done` of a request is called once, in one of the threads: with the values, in
    order, of its first rows, one at least, after which about `FETCH_BYTES` have come; or with what went wrong. Who asks
    again for the others asks for as much as it can hold. What is asked for is bounded by those who ask: slices, and
    reads in progress."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # One part wakes one thread; with a `Condition` all four would come and ask the loop for the interpreter.
        self._parts: SimpleQueue[tuple[RowsAsked, int] | None] = SimpleQueue()
        """Whose part, and which; None: a thread ends."""
        self._threads: list[threading.Thread] = []

    def fetch(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        """Read `rows`, at least one."""
        asked = RowsAsked(rows, done)
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name=f"fetcher-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        for part in range(len(asked.parts)):
            self._parts.put((asked, part))

    @property
    def waiting(self) -> int:
        """Parts of what was asked for that no thread has begun."""
        return self._parts.qsize()

    def stop(self) -> None:
        """Read what is asked for, then end. Blocks. The engine may be closed after it."""
        for _ in self._threads:
            self._parts.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (part := self._parts.get()) is not None:
            asked, number = part
            asked.read(number, self._engine)

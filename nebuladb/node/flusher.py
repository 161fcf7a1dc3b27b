"""The thread that makes the log durable, so that neither a slow disk nor a stalled one holds the loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from nebuladb.storage.log import LogStore

STOP: Final = 0
"""No batch's id."""


class Flusher:
    """Syncs the log up to the newest batch that was written; one sync covers all batches written before it began.

    `done(batch, seconds)` and `failed(error)` are called in this thread; they hand over to the loop. After an error
    nothing is synced again (S33).
    """

    def __init__(
        self, log: LogStore, done: Callable[[int, float], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._log = log
        self._done = done
        self._failed = failed
        # Waking a thread by it takes a lock of the system's, by a `Condition` four, and each may cost a switch.
        self._written: SimpleQueue[int] = SimpleQueue()
        """Batches to sync; as many as may be on their way to the disk (``node.batches``)."""
        self._thread = threading.Thread(target=self._run, name="log-flusher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def sync(self, batch: int) -> None:
        """Batches up to `batch` are written; make them durable soon."""
        self._written.put(batch)

    def stop(self) -> None:
        """Sync what is outstanding, then end. Blocks for one sync at most twice."""
        self._written.put(STOP)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        written = self._written
        stopping = False
        while not stopping:
            wanted = [written.get()]
            while not written.empty():
                wanted.append(written.get())
            stopping = STOP in wanted
            newest = max(wanted)
            if newest == STOP:
                return
            begun = time.perf_counter()
            try:
                self._log.sync()
            except BaseException as error:
                self._failed(error)
                return
            self._done(newest, time.perf_counter() - begun)

"""The thread that makes the log durable, so that neither a slow disk nor a stalled one holds the loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nebuladb.storage.log import LogStore


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
        self._wanted = self._synced = 0
        self._stopping = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-flusher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def sync(self, batch: int) -> None:
        """Batches up to `batch` are written; make them durable soon."""
        with self._condition:
            self._wanted = batch
            self._condition.notify()

    def stop(self) -> None:
        """Sync what is outstanding, then end. Blocks for one sync at most twice."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _next(self) -> int | None:
        """Wait for a batch to sync; None once stopping and all is synced."""
        with self._condition:
            self._condition.wait_for(lambda: self._wanted > self._synced or self._stopping)
            return self._wanted if self._wanted > self._synced else None

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            begun = time.perf_counter()
            try:
                self._log.sync()
            except BaseException as error:
                self._failed(error)
                return
            self._synced = batch
            self._done(batch, time.perf_counter() - begun)

"""Who makes the log durable, so that neither a slow disk nor a stalled one holds the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from nebuladb.storage.kernel_sync import KernelSync
from nebuladb.storage.log import LogStore

SYNC: Final = 1
END: Final = 0


class Flusher:
    """Syncs the log up to the newest batch that was written. One sync runs at a time; it covers all batches that were
    written before it began.

    The kernel does it where it can. Where it can't, and after the log has begun a new file, a thread asks the engine.
    `done(batch, seconds)` and `failed(error)` are called on the loop. After an error nothing is synced again (S33).
    """

    def __init__(
        self, log: LogStore, done: Callable[[int, float], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._log = log
        self._done = done
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._kernel = KernelSync.open()
        # Waking a thread by it takes a lock of the system's, by a `Condition` four, and each may cost a switch.
        self._work: SimpleQueue[int] = SimpleQueue()
        """`SYNC` or `END`, for the thread."""
        self._thread = threading.Thread(target=self._run, name="log-flusher", daemon=True)
        self._written = 0
        """The newest batch that is to be synced."""
        self._syncing = 0
        """The newest one of which the running sync takes care; 0: none runs."""
        self._begun = 0.0
        self._ended = False
        """No further sync begins."""
        self._stopping = False
        """`stop` waits for `_rests`: that no sync runs."""
        self._rests = asyncio.Event()

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        if self._kernel is not None:
            self._loop.add_reader(self._kernel.fileno, self._look)

    def sync(self, batch: int) -> None:
        """Batches up to `batch` are written; make them durable soon."""
        if self._ended:
            return
        self._written = batch
        if self._syncing:
            return
        self._syncing, self._begun = batch, time.perf_counter()
        kernel = self._kernel
        try:
            file = self._log.sync_file() if kernel is not None else None
            if kernel is None or file is None or not kernel.begin(file):
                self._work.put(SYNC)
        except BaseException:
            self._end()
            raise

    @property
    def by_kernel(self) -> bool:
        """Whether the kernel syncs, as far as it can."""
        return self._kernel is not None

    async def stop(self) -> None:
        """End when what is outstanding is synced. Idempotent."""
        if self._thread.ident is None:
            return  # it never began
        self._stopping = True
        while self._syncing:
            self._rests.clear()
            await self._rests.wait()
        self._ended = True
        if self._thread.is_alive():
            self._work.put(END)
            await asyncio.to_thread(self._thread.join)
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel.fileno)
            self._kernel = None

    def _look(self) -> None:
        """The kernel says that something is over."""
        assert self._kernel is not None
        try:
            if not self._kernel.finished():
                return
        except BaseException as error:
            self._fail(error)
            return
        self._over()

    def _over(self) -> None:
        """The sync is over. What it made durable stays so, whatever happens to the next one."""
        batch, seconds = self._syncing, time.perf_counter() - self._begun
        self._syncing = 0
        if self._written != batch:
            try:
                self.sync(self._written)
            except BaseException as problem:
                self._failed(problem)
                return
        elif self._stopping:
            self._rests.set()
        self._done(batch, seconds)

    def _fail(self, error: BaseException) -> None:
        self._end()
        self._failed(error)

    def _end(self) -> None:
        self._syncing, self._ended = 0, True
        self._rests.set()

    def _run(self) -> None:
        while self._work.get() == SYNC:
            try:
                self._log.sync()
            except BaseException as error:
                self._loop.call_soon_threadsafe(self._fail, error)
            else:
                self._loop.call_soon_threadsafe(self._over)

"""A process's end and its pid file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from nebuladb.errors import DiskFull, NebulaError, NodeRemoved
from nebuladb.server.process import EXIT_REMOVED
from nebuladb.storage.files import unwritten

PID_FILE: Final = "nebulad.pid"
DRAIN_SECONDS: Final = 10.0
"""How long a drain may take: hand leadership over, finish what is in flight, close the stores."""
CLOSE_SECONDS: Final = 5.0
"""And closing what is open, after it."""
EXIT_FORCED: Final = 1
EXIT_BROKEN: Final = 1


class PidFile:
    """``nebulad.pid`` in a data directory. Write it only while holding the directory's lock (S18): a second start on
    a used directory would otherwise name itself there, just before it is refused."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / PID_FILE

    def write(self) -> None:
        """Name this process, all at once: a reader never finds half a number. Raises `StoreError` or `DiskFull`."""
        scratch = self.path.with_suffix(".pid.new")
        try:
            scratch.write_text(f"{os.getpid()}\n", encoding="ascii")
            scratch.replace(self.path)
        except OSError as error:
            raise unwritten(self.path, error) from error

    def read(self) -> int | None:
        """The pid that stands there, else None. It may be a dead process's."""
        try:
            return int(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def remove(self) -> None:
        """Remove it if it is ours. Where that can't be done, it stays, and is known as a dead process's: why the node
        ends must not be hidden behind it."""
        if self.read() == os.getpid():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def end_in_time() -> None:
    """A disk that hangs holds the threads that flush and close, and they would hold the process: it ends without them.
    What was acknowledged is durable; what hangs was promised to nobody."""
    timer = threading.Timer(DRAIN_SECONDS + CLOSE_SECONDS, os._exit, (EXIT_FORCED,))
    timer.daemon = True
    timer.start()


class Shutdown:
    """Why and when the process ends: the first SIGTERM, SIGINT or SIGHUP drains, a second one (but SIGHUP) ends it
    at once.

    Whatever finds that the node can't go on (a broken invariant, a failed disk) calls `fail`; then there is no drain:
    a node that is wrong hands nothing over, and what it acknowledged is on disk already.
    """

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        """`on_end` is called when the end begins; see `end_in_time`."""
        self._on_end = on_end
        self._asked = asyncio.Event()
        self.requested = False
        """Somebody asked for the end: whatever fails in it, the node doesn't start again by itself."""
        self.failure: BaseException | None = None
        """What `fail` was told first, if anything."""
        self.only_copies: list[int] = []
        """The groups of which no other node has the data, nor the log all of it, when that was closed."""
        self._log = structlog.get_logger("lifecycle")

    def request(self, why: str) -> None:
        """Ask for a drain, as SIGTERM does. A second one exits the process."""
        if self._asked.is_set():
            self._log.warning("second request to stop: exiting at once", why=why)
            os._exit(EXIT_FORCED)
        self._log.info("stopping", why=why)
        self.requested = True
        self._asked.set()
        self._on_end()

    def fail(self, error: BaseException) -> None:
        """Stop because of `error`. Later ones are logged only."""
        text = error.message if isinstance(error, NebulaError) else repr(error)
        if isinstance(error, NodeRemoved):
            self._log.error("the node stops: it was removed", error=text)
        else:
            self._log.error("the node stops: it can't go on", error=text, exc_info=error)
        if self.failure is None:
            self.failure = error
        self._asked.set()
        if not isinstance(error, DiskFull):
            self._on_end()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are requests while this lasts; so is SIGHUP, unless whoever started us had it ignored, as
        nohup does. Call it in the running loop."""
        loop = asyncio.get_running_loop()
        caught = {signal.SIGTERM: self.request, signal.SIGINT: self.request}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            caught[signal.SIGHUP] = self._hung_up
        for number, handle in caught.items():
            loop.add_signal_handler(number, handle, number.name)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _hung_up(self, why: str) -> None:
        """A terminal that closes may say so twice, by itself and by its shell: that is one request."""
        if not self._asked.is_set():
            self.request(why)

    async def wait(self) -> None:
        """Until somebody asks for the end."""
        await self._asked.wait()

    def exit_code(self) -> int:
        """What the process ends with, as things are."""
        if isinstance(self.failure, NodeRemoved):
            return EXIT_REMOVED
        return EXIT_BROKEN if self.failure is not None else 0

    async def run(self, drain: Callable[[], Awaitable[None]], grace: float = DRAIN_SECONDS) -> int:
        """Wait for the end, `drain` within `grace` seconds, and return the exit code: 0 only after a whole drain."""
        await self.wait()
        # Who was removed is wrong about nothing, and may be answering the very request that removed it.
        if self.exit_code() not in (0, EXIT_REMOVED):
            return self.exit_code()
        try:
            async with asyncio.timeout(grace):
                await drain()
        except TimeoutError:
            # Not an error of the data: everything acknowledged is durable, the next start replays the rest.
            self._log.warning("the drain was cut short", seconds=grace)
        self._log.info("stopped")
        return self.exit_code()

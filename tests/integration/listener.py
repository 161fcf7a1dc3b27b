"""Told of a process's probes from outside, and killing it at one of them; the product knows nothing of it.

The harness gives a process that it starts the environment of an `Ear`. Python runs ``sitecustomize`` at the start of
every process; the one that the ear puts first on its path calls `listen`, which stands before the one global of
``nebuladb.env``. Each phase that the process passes is a line of a file, which outlives it; an order in another file
says at which pass it is to be killed: by SIGKILL, in the very call, or some milliseconds later.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Final

from nebuladb.env import Probes

HOME: Final = "EAR_HOME"
FLUSHES: Final = "EAR_WITHOUT_FLUSHES"
ROOT: Final = Path(__file__).parents[2]
CUSTOM: Final = "import tests.integration.listener\ntests.integration.listener.listen()\n"
DAMAGE: Final = (
    "data lost",
    "data older than the log",
    "data damaged at the start",
    "data damaged in use",
    "data store can't be opened",
)
"""What no SIGKILL may lead to: the page cache survives it, and so does all that was flushed."""


class Ear:
    """The harness's side of one process at a time, in a directory of its own."""

    def __init__(self, home: Path, phases: Collection[str], *, flushes: bool = True) -> None:
        """`flushes`: without them, flushing and closing a store do nothing: the broken variant."""
        self._home = home
        self._flushes = flushes
        home.mkdir(parents=True)
        (home / "sitecustomize.py").write_text(CUSTOM)
        (home / "phases").write_text("\n".join([*phases, *DAMAGE]))
        self.release()
        self.forget()

    @property
    def environ(self) -> dict[str, str]:
        """For the process."""
        found = {"PYTHONPATH": f"{self._home}:{ROOT}", HOME: str(self._home)}
        return found if self._flushes else found | {FLUSHES: "1"}

    def order(self, phase: str, nth: int = 1, milliseconds: float = 0.0) -> None:
        """Kill it so long after it passes `phase` for the `nth` time from now on."""
        draft = self._home / "order.new"
        draft.write_text(f"{nth} {milliseconds} {phase}")
        draft.replace(self._home / "order")

    def release(self) -> None:
        """Let it live."""
        self.order("")

    def forget(self) -> None:
        """What was heard so far."""
        (self._home / "heard").write_bytes(b"")

    @property
    def heard(self) -> list[str]:
        """The phases that it passed, and the damage that it met."""
        return (self._home / "heard").read_text().splitlines()


class _Listener:
    """In the process itself."""

    def __init__(self, home: Path) -> None:
        self._phases = frozenset((home / "phases").read_text().splitlines())
        self._order = home / "order"
        self._heard = os.open(home / "heard", os.O_WRONLY | os.O_APPEND)
        self._known = ""
        self._passed = 0

    def passed(self, name: str) -> None:
        if name not in self._phases:
            return
        os.write(self._heard, f"{name}\n".encode())
        text = self._order.read_text()
        if text != self._known:
            self._known, self._passed = text, 0
        nth, milliseconds, phase = text.split(" ", 2)
        if name != phase:
            return
        self._passed += 1
        if self._passed != int(nth):
            return
        if float(milliseconds):
            timer = threading.Timer(float(milliseconds) / 1000, _kill)
            timer.daemon = True
            timer.start()
        else:
            _kill()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def listen() -> None:
    """In a process that was started with an ear's environment: hear its probes from now on."""
    listener, count = _Listener(Path(os.environ[HOME])), Probes.__call__

    def hear(probes: Probes, name: str) -> None:
        count(probes, name)
        listener.passed(name)

    Probes.__call__ = hear  # type: ignore[method-assign, assignment]
    if FLUSHES in os.environ:
        from nebuladb.storage.rocks import RocksEngine

        RocksEngine.flush = lambda engine: None  # type: ignore[method-assign, assignment]
        RocksEngine.close = lambda engine: None  # type: ignore[method-assign, assignment]  # it would flush

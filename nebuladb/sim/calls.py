"""A client's calls: requests and answers travel, as frames between nodes do, and a connection may break under them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from nebuladb.sim.core import Core
from nebuladb.sim.faults import LATE_MS

NOTICE_MS: Final = 20
"""The longest that the client takes to notice that its connection broke."""
SILENT: Final = 4
"""One in so many breaks without a word: the client waits for its time-out."""


class Calls:
    """Of one client. Nothing comes twice or damaged, for its connections are TCP's; what is on its way may arrive when
    the client has long given up."""

    def __init__(self, core: Core, rng: Random) -> None:
        self._core = core
        self._rng = rng
        self._draw = rng.random

    def carry(self, broken: Callable[[], None], action: Callable[..., None], *args: Any) -> None:
        """`action(*args)` is what happens where it arrives, request or answer; or else the client is told that the
        connection is `broken`, or nothing happens."""
        core, draw = self._core, self._draw
        faults, report = core.faults, core.report
        report.called += 1
        if faults.breaks and draw() < faults.breaks:
            core.hit("connection broke under a call")
            if self._rng.randrange(SILENT):
                core.scheduler.after(self._rng.randrange(NOTICE_MS), broken)
            return
        longest = LATE_MS if faults.late and draw() < faults.late else faults.delay
        core.scheduler.after(int(draw() * (longest + 1)), self._arrive, action, args)

    def _arrive(self, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._core.report.calls += 1
        action(*args)

"""What of a machine dies with its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer
from nebuladb.node.node import Node
from nebuladb.sim.clock import DriftingClock
from nebuladb.sim.disk import WatchedLog
from nebuladb.sim.process import Process

Written = Callable[[Answer | NebulaError], None]
Confirmed = Callable[[NebulaError | None], None]


class Life:
    """The running node, and who waits for it."""

    def __init__(self, node: Node, log: WatchedLog, clock: DriftingClock) -> None:
        self.node = node
        self.log = log
        self.clock = clock
        self.turning = self.working = False
        """Whether a turn, or background work, is due already."""
        self.paused = False
        self.late: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """What came while it stood still, in order."""
        self.late_tick = False
        self.process: Process
        """What else runs in it."""
        self.writes: dict[int, Written] = {}
        self.reads: dict[int, Confirmed] = {}

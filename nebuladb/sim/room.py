"""Room that a node which is short of space gives back: what was deleted is compacted soon (``node.vacuum``)."""

from __future__ import annotations

from typing import Final

from nebuladb.kv.rows import PREFIX_SIZE, RECORD
from nebuladb.sim.core import Core
from nebuladb.sim.disk import Disk
from nebuladb.sim.faults import SLOW_SYNC_MS
from nebuladb.sim.life import Life
from nebuladb.sim.violation import require

TICKS_MS: Final = 400
WRITES: Final = 4
"""A flush and a compaction that run, those that begin then, and the rest between compactions."""


class Room:
    """Rows of the history that are deleted, and take room, on the disk of a node that is short of space now."""

    def __init__(self, life: Life, disk: Disk, core: Core) -> None:
        self.life = life
        self.soon = TICKS_MS + WRITES * (SLOW_SYNC_MS if core.drawn.slow_sync else core.drawn.sync)
        """When `check` is to be called, in ms."""
        self._disk = disk
        self._core = core
        self._since = core.scheduler.now
        self._waste = {key: since for key, since in disk.data.waste.items() if key[PREFIX_SIZE:].startswith(RECORD)}

    def check(self, name: str) -> None:
        """Raise `Violation` if any of it still takes room, and the disk is to blame for nothing."""
        disk = self._disk
        if max(disk.hangs_until, disk.slow_until, disk.rests_until) > self._since or disk.cramped:
            return
        left = [key for key, since in self._waste.items() if disk.data.waste.get(key) == since]
        require(not left, f"{name} is short of space, and {left} take room after {self.soon} ms (S33)")
        if self._waste:
            self._core.hit("room given back")

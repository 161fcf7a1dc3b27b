"""How long a node whose data store failed a read leaves leading to others (S33).

The alarm that stands meanwhile is the state: `Upkeep` hands the leaderships over, as for a disk that is full, and the
node isn't ready. When it is over can't be told from reads that go well, for a node that leads nothing is asked for
little. So it ends after a time without a failed read, and that is twice as long each time: a disk that was away for a
moment costs half a minute, and one with a bad block doesn't take the leaderships back and forth.
"""

from __future__ import annotations

from typing import Final

from nebuladb.errors import StoreError
from nebuladb.node.alarms import Alarm, AlarmKind, Alarms

FIRST_MS: Final = 30_000
LONGEST_MS: Final = 32 * FIRST_MS


class Unreadable:
    """Of one process. Times are milliseconds of one clock."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._span = 0
        self._until = 0

    def met(self, error: StoreError, now: int) -> None:
        """A read failed. The log gets the first one's text, `/status` the last one's: one alarm, wherever they were."""
        if not self._alarms.stands(AlarmKind.UNREADABLE):
            self._span = min(2 * self._span or FIRST_MS, LONGEST_MS)
        self._until = now + self._span
        text = f"a read of the data store failed: {error.message}; look at this node's disk, or replace the node"
        self._alarms.raised(Alarm(AlarmKind.UNREADABLE, text))

    def look(self, now: int) -> None:
        """End it in time."""
        if now >= self._until and self._alarms.stands(AlarmKind.UNREADABLE):
            self._alarms.cleared(AlarmKind.UNREADABLE)

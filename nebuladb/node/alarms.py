"""What an operator must know, for as long as it is so."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

MAX_ALARMS: Final = 64
"""Of each kind, so that none keeps out the others, nor those of shards the node's own."""


class AlarmKind(StrEnum):
    """The kinds, as metrics name them."""

    OTHER = "other"
    """Stays until the process ends."""
    NO_SPACE = "no-space"
    """The disk is nearly full; the node is read-only (S33)."""
    STALLED = "stalled"
    """The log's disk doesn't answer."""
    UNREADABLE = "unreadable"
    """The data's disk fails reads."""
    DATA_LOST = "data-lost"
    """A replica's data is gone or damaged, and it waits for a snapshot."""
    INCONSISTENT = "inconsistent"
    """Replicas of a shard differ (S28)."""


class Alarm(NamedTuple):
    """One alarm. Kind, group and node say which it is; the text may change."""

    kind: AlarmKind
    text: str
    group: int = 0
    node: int = 0


class Alarms:
    """Those that are raised now. One too many of a kind is dropped: there is enough to look at then."""

    def __init__(self) -> None:
        self._tell: Callable[[Alarm], None] | None = None
        self._raised: dict[tuple[AlarmKind, int, int, str], Alarm] = {}

    def raised(self, alarm: Alarm) -> None:
        """It is so, perhaps still."""
        key = _key(alarm)
        known = key in self._raised
        many = alarm.group or alarm.kind is AlarmKind.OTHER  # of others a node has one
        if not known and many and self.counts()[alarm.kind] >= MAX_ALARMS:
            return
        self._raised[key] = alarm
        if not known and self._tell is not None:
            self._tell(alarm)

    def subscribe(self, tell: Callable[[Alarm], None]) -> None:
        """Call `tell` for each alarm that is raised now, and from now on for each new one; for the log."""
        self._tell = tell
        for alarm in self.all():
            tell(alarm)

    def cleared(self, kind: AlarmKind, group: int = 0) -> None:
        """It isn't so any more, on whichever node. Idempotent."""
        self._raised = {key: alarm for key, alarm in self._raised.items() if alarm[0] != kind or alarm.group != group}

    def stands(self, kind: AlarmKind) -> bool:
        """Whether one of this kind is raised."""
        return any(key[0] is kind for key in self._raised)

    def all(self) -> list[Alarm]:
        """In the order in which they were raised."""
        return list(self._raised.values())

    def texts(self) -> list[str]:
        """For people, sorted."""
        return sorted(alarm.text for alarm in self._raised.values())

    def counts(self) -> dict[str, int]:
        """By kind; every kind, also where there is none."""
        counts = dict.fromkeys((str(kind) for kind in AlarmKind), 0)
        for alarm in self._raised.values():
            counts[alarm.kind] += 1
        return counts


def _key(alarm: Alarm) -> tuple[AlarmKind, int, int, str]:
    return alarm.kind, alarm.group, alarm.node, alarm.text if alarm.kind is AlarmKind.OTHER else ""

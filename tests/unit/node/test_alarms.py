"""Alarms reach the log, whenever they are raised."""

from __future__ import annotations

from nebuladb.node.alarms import Alarm, AlarmKind, Alarms


def test_one_that_is_raised_before_anybody_listens_is_told_too() -> None:
    """Of data that is gone a node learns while it is made: its log said nothing."""
    alarms, told = Alarms(), list[str]()
    alarms.raised(Alarm(AlarmKind.DATA_LOST, "gone", 2))
    alarms.subscribe(lambda alarm: told.append(alarm.text))
    assert told == ["gone"]
    alarms.raised(Alarm(AlarmKind.DATA_LOST, "gone still", 2))
    alarms.raised(Alarm(AlarmKind.OTHER, "something else"))
    assert told == ["gone", "something else"]

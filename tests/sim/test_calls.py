"""What a client asks for travels, and so does the answer."""

from __future__ import annotations

from collections import Counter
from random import Random

from nebuladb.sim.calls import NOTICE_MS, Calls
from nebuladb.sim.core import Core
from nebuladb.sim.faults import LATE_MS, Faults
from nebuladb.sim.trace import Trace

CALLS = 400


def carried(faults: Faults) -> tuple[Core, Counter[str], list[int]]:
    """What becomes of `CALLS` messages, and when those that arrive do, in virtual ms."""
    core, seen, at = Core(1, faults, Trace()), Counter[str](), list[int]()
    calls = Calls(core, Random(1))

    def arrived(number: int) -> None:
        seen["arrived"] += 1
        at.append(core.scheduler.now)
        assert 0 <= number < CALLS

    def broken() -> None:
        seen["broken"] += 1
        assert core.scheduler.now < NOTICE_MS

    for number in range(CALLS):
        calls.carry(broken, arrived, number)
    core.scheduler.run(2 * LATE_MS)
    return core, seen, at


def test_each_arrives_once_within_its_delay() -> None:
    core, seen, at = carried(Faults(delay=10))
    assert seen == {"arrived": CALLS}
    assert {*at} == {*range(11)}
    assert (core.report.called, core.report.calls) == (CALLS, CALLS)


def test_a_connection_that_breaks_loses_it_and_its_client_may_not_notice() -> None:
    core, seen, _ = carried(Faults(breaks=0.5))
    lost = core.report.called - core.report.calls
    assert seen["arrived"] == core.report.calls
    assert 0 < seen["broken"] < lost == core.report.faults["connection broke under a call"]


def test_some_are_late() -> None:
    _, seen, at = carried(Faults(delay=10, late=0.1))
    assert seen == {"arrived": CALLS}
    assert 10 < max(at) <= LATE_MS

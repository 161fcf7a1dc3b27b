"""Late turns of the loop are counted and named."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from nebuladb.server import watchdog as module
from nebuladb.server.metrics import MAX_WORKS, OTHER_METHOD, Metrics
from nebuladb.server.watchdog import COLLECTOR, LATE_SECONDS, NOTHING, CoreTime, Watchdog


def hold(seconds: float) -> None:
    """Keep the loop."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def beats(metrics: Metrics, wanted: int) -> None:
    """Until so many late turns were counted."""
    while sum(metrics.late_turns.values()) < wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no late turn here."""
    monkeypatch.setattr(module, "LATE_SECONDS", 0.5)


@pytest.mark.usefixtures("patient")
async def test_a_late_turn_is_named_after_the_longest_work() -> None:
    metrics = Metrics()
    watchdog = Watchdog(metrics)
    watchdog.start()
    await asyncio.sleep(0)
    hold(0.6)
    watchdog.busy("turn: 3 entries applied", 0.55)
    watchdog.busy("background", 0.05)
    await beats(metrics, 1)
    assert metrics.late_turns == {"turn": 1}
    assert metrics.late_seconds["turn"] > 0.5
    assert metrics.worst_beat > 0.5
    assert 0 < metrics.worst_own <= metrics.worst_beat
    hold(0.6)
    watchdog.busy("background", 0.006)
    await beats(metrics, 2)
    assert metrics.late_turns == {"turn": 1, NOTHING.partition(":")[0]: 1}, "what took a hundredth of it wasn't it"
    watchdog.stop()
    watchdog.stop()
    assert watchdog._collector not in gc.callbacks


@pytest.mark.usefixtures("patient")
async def test_a_collection_amid_other_work_is_named() -> None:
    metrics = Metrics()
    watchdog = Watchdog(metrics)
    watchdog.start()
    await asyncio.sleep(0)
    watchdog._collector("start", {})
    hold(0.55)
    watchdog._collector("stop", {})
    watchdog.busy("turn: 3 entries applied", 0.6)
    await beats(metrics, 1)
    assert metrics.late_turns == {COLLECTOR: 1}
    watchdog.stop()


def test_works_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_WORKS + 5):
        metrics.loop_late(LATE_SECONDS, f"work {number}")
    assert len(metrics.late_turns) == MAX_WORKS + 1
    assert metrics.late_turns[OTHER_METHOD] == 5
    text = b"".join(metrics.parts()).decode()
    assert 'nebula_loop_late_total{work="work 3"} 1.0' in text
    assert "nebula_loop_worst_seconds 0.0" in text


def test_time_without_a_core_is_told_from_time_on_one() -> None:
    core, began = CoreTime(), time.perf_counter()
    had, waited = core.seconds()
    hold(0.05)
    more_had, more_waited = core.seconds()
    took = time.perf_counter() - began
    assert 0 <= more_waited - waited <= took
    assert took - (more_waited - waited) - 0.03 < more_had - had < took + 0.02, "but for a tick of the kernel's"
    core.close()
    core.close()
    assert core.seconds() == (0.0, 0.0)

"""Whether the event loop comes round in time, and what kept it when it didn't.

A timer that should fire every `BEAT_SECONDS` tells how long the loop was away, whatever the reason: a long slice, the
collector, a C call that kept the interpreter's lock, a machine that gave its cores to others. Who does work that may
take long says so with `busy`; the longest since the last beat names a late one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from typing import Any, Final

import structlog

from nebuladb.server.metrics import Metrics

BEAT_SECONDS: Final = 0.01
LATE_SECONDS: Final = 0.02
"""A turn of the loop longer than this is counted and logged: a fifth of a heartbeat interval."""
LOG_SECONDS: Final = 1.0
"""At most one line in this time: a slow machine must not be slowed by complaints about it."""
SWITCH_SECONDS: Final = 0.0005
"""How long a thread that comes back from the disk waits for a busy loop to let go of the interpreter's lock. Measured
with a thread that waits 0.2 ms for the disk, beside a loop that never waits: it came round 1,150 times a second with
50 us, 550 with 0.5 ms, 130 with the default of 5 ms. Below 0.5 ms the loop got up to a sixth less done."""
GC_THRESHOLDS: Final = (10_000, 20, 5)
"""Thousand requests in flight are some thousand new containers; a young collection of 10,000 takes 0.3 ms and meets
mostly dead ones. What is kept in numbers, records and log entries, is kept as bytes, which none of them looks at. A
full one is due after a million containers that stayed: three million took it five seconds."""
SCHEDULER: Final = "/proc/thread-self/schedstat"
"""Linux: nanoseconds on a core, nanoseconds that the thread was ready and had none, and slices."""
COLLECTOR: Final = "collector"
NOTHING: Final = "unknown: no slice took long; another thread, the collector or other processes had the core"


def tune() -> None:
    """Set up interpreter and collector for a loop that must not wait. What lives now, lives as long as the process:
    the collector needn't look at it again."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class CoreTime:
    """How long the thread that made this has had a core, and how long it has been ready to run without getting one,
    which is what other processes have taken from it. For that thread; 0 where the system doesn't say."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(SCHEDULER, os.O_RDONLY | os.O_CLOEXEC)

    def seconds(self) -> tuple[float, float]:
        """(seconds on a core, seconds ready without one) since the thread began; the former as of the kernel's last
        tick, at most 10 ms ago."""
        if self._file is None:
            return 0.0, 0.0
        had, waited, _ = os.pread(self._file, 128, 0).split()
        return int(had) / 1e9, int(waited) / 1e9

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Watchdog:
    """All methods are for the loop's thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("watchdog")
        self._due = self._logged = self._cpu = self._waited = 0.0
        self._work, self._longest = NOTHING, 0.0
        self._collecting = self._collected = 0.0
        """When a collection began; how long those since the last beat took."""
        self._timer: asyncio.TimerHandle | None = None
        self._core: CoreTime | None = None

    def start(self) -> None:
        """Watch the running loop."""
        gc.callbacks.append(self._collector)
        self._core = CoreTime()
        self._beat(self._core, asyncio.get_running_loop(), first=True)

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if self._core is not None:
                self._core.close()
            gc.callbacks.remove(self._collector)

    def busy(self, work: str, seconds: float) -> None:
        """`work` has kept the loop for `seconds`."""
        if seconds > self._longest:
            self._work, self._longest = work, seconds

    def _collector(self, phase: str, _: dict[str, Any]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._collecting = now
        else:
            self._collected += now - self._collecting
            self.busy(COLLECTOR, now - self._collecting)

    def _beat(self, core: CoreTime, loop: asyncio.AbstractEventLoop, *, first: bool = False) -> None:
        # A hundred times a second, amid requests: one system call, and the loop is not asked for, which is another.
        now, (cpu, waited) = time.perf_counter(), core.seconds()
        late, robbed = now - self._due, waited - self._waited
        if not first:
            metrics = self._metrics
            metrics.worst_beat = max(metrics.worst_beat, late)
            metrics.worst_own = max(metrics.worst_own, late - robbed)
            if late > LATE_SECONDS:
                # What took a small part of it is not what it was.
                work = self._work if self._longest > late / 4 else NOTHING
                if self._collected > late / 2:
                    work = COLLECTOR  # it came within other work, which is longer by a little
                metrics.loop_late(late, work.partition(":")[0])
                if now - self._logged > LOG_SECONDS:
                    self._logged = now
                    self._log.warning(
                        "the loop was late",
                        ms=round(late * 1e3),
                        cpu_ms=round((cpu - self._cpu) * 1e3),
                        no_core_ms=round(robbed * 1e3),
                        gc_ms=round(self._collected * 1e3),
                        work=work,
                    )
        self._work, self._longest, self._collected = NOTHING, 0.0, 0.0
        self._due, self._cpu, self._waited = now + BEAT_SECONDS, cpu, waited
        self._timer = loop.call_later(BEAT_SECONDS, self._beat, core, loop)

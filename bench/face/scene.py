"""Where clusters run for a while: a directory and processes that are gone afterwards, also after Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

SYNCS: Final = 200
SYNC_BYTES: Final = 256


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def scratch(parent: Path | None) -> Iterator[tuple[Path, ExitStack]]:
    """A directory for the clusters' data, and where to enter the clusters: both are gone when it ends, and whoever ends
    us, by anything but SIGKILL, waits for that."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nebula-bench-", dir=parent) as name, ExitStack() as stack:
        try:
            yield Path(name), stack
        finally:
            # A second Ctrl-C would leave half of it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def sync_seconds(file: Path, size: int = SYNC_BYTES, *, zeros: int = 0, rest: float = 0.0) -> float:
    """What making `size` bytes durable costs in `file`, which is made anew, with so many `zeros` ahead: the median.

    `rest`: seconds between two.
    """
    took = []
    descriptor = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        os.pwrite(descriptor, bytes(zeros), 0)
        os.fsync(descriptor)
        for _ in range(SYNCS):
            os.write(descriptor, b"x" * size)
            began = time.perf_counter()
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - began)
            if rest:
                time.sleep(rest)
    finally:
        os.close(descriptor)
    return statistics.median(took)

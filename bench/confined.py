"""Processes that may hold so much memory: a cgroup where one can be made, and what /proc says in any case."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PATIENCE: Final = 5.0


def peak(pid: int) -> float:
    """The most that a process has had resident, MiB (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Confinement:
    """A cgroup below our own, of version 2 or 1, in which a process is killed rather than given more than `limit` bytes
    (its share of the page cache counts, but can be had back). Where none can be made, `prefix` is empty."""

    def __init__(self, limit: int) -> None:
        self._path: Path | None = None
        for base, name in ((ROOT / "memory", "memory.limit_in_bytes"), (ROOT, "memory.max")):
            path = base / _own(base == ROOT) / f"nebula-{os.getpid()}"
            try:
                path.mkdir()
            except OSError:
                continue
            try:
                (path / name).write_text(str(limit))
            except OSError:
                path.rmdir()
                continue
            self._path = path
            break

    @property
    def enforced(self) -> bool:
        """Whether the kernel holds the limit."""
        return self._path is not None

    @property
    def prefix(self) -> list[str]:
        """A command that runs the rest of its line in there, under its own pid."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(self._path)] if self._path else []

    def close(self) -> None:
        """Remove it; its processes must have ended."""
        deadline = time.monotonic() + PATIENCE
        while self._path is not None and self._path.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # the kernel lets go of the last process a moment later
                self._path.rmdir()
                return
            time.sleep(0.1)


def _own(unified: bool) -> str:
    """The cgroup of this process, relative to the root of its hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if unified else ("memory" in controllers.split(",")):
            return path.lstrip("/")
    return ""

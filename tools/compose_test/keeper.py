"""Runs beside the test, and sees to it that nothing is left of it: ``keeper SCRATCH RUN [DOCKERD...]``.

It waits for the end of its standard input, which even a ``kill -9`` of the test brings about. If the test did not say
goodbye before, containers, networks, volumes and images with the name of its `RUN` go, and its scratch directory. The
engine of its own, DOCKERD, is started and ended here, in any case, with whatever it had mounted.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tools.compose_test.shell import Failure, attempt

FOLDER: Final = "engine"
"""In the scratch directory, where the engine has everything."""
GOODBYE: Final = b"bye"
"""What a test says that has removed all that it made."""
STOP_SECONDS: Final = 60.0
ASK_SECONDS: Final = 60.0
ROUNDS: Final = 5
PAUSE_SECONDS: Final = 2.0
"""What the test had just asked for may appear once it is dead."""


def main(words: list[str]) -> int:
    """What the engine exits with; 0 without one."""
    scratch, name, command = Path(words[0]), words[1], words[2:]
    # A session of its own: a signal for us must not end it before its containers are gone.
    engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) if command else None
    watched = [sys.stdin.fileno()] + ([os.pidfd_open(engine.pid)] if engine else [])
    ready, _, _ = select.select(watched, [], [])
    died = watched[0] in ready and not os.read(watched[0], len(GOODBYE))
    if died:
        remove(name)
    if engine:
        _end(engine)
    if engine or died:
        clear(scratch if died else scratch / FOLDER)
    return engine.returncode if engine else 0


def remove(name: str) -> None:
    """Whatever the engine has whose name begins with `name`."""
    for _ in range(ROUNDS):
        try:
            if not sum(_removed(what, name) for what in ("container", "network", "volume", "image")):
                return
        except Failure as failure:  # an engine that doesn't answer in time
            print(failure, file=sys.stderr)
        time.sleep(PAUSE_SECONDS)


def _removed(what: str, name: str) -> int:
    """How many of a kind there were to remove."""
    listing = {"container": ["--all"], "image": [f"--filter=reference=*:{name}*", "--format={{.Repository}}:{{.Tag}}"]}
    chosen = listing.get(what, [])
    if what != "image":
        chosen = [*chosen, "--quiet", f"--filter=name={name}"]
    found = attempt(["docker", what, "ls", *chosen], seconds=ASK_SECONDS).stdout.decode().split()
    if found:
        forced = {"network": [], "container": ["--force", "--volumes"]}.get(what, ["--force"])
        attempt(["docker", what, "rm", *forced, *found], seconds=ASK_SECONDS)
    return len(found)


def _end(engine: subprocess.Popen[bytes]) -> None:
    if engine.poll() is None:
        engine.send_signal(signal.SIGTERM)
        try:
            engine.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It and what it started, its containerd: the session is its own.
            os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()


def clear(directory: Path) -> None:
    """Remove `directory`, and before what an engine that was killed left mounted in it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in sorted(mounts, reverse=True):
        if Path(place).is_relative_to(directory):
            attempt(["umount", "--lazy", place])
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

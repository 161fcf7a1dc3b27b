"""Running other programs: bounded, and with what they said when they fail."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.2
TAIL: Final = 3000
"""Characters of a program's output in a failure."""


class Failure(Exception):
    """What was expected did not happen; the text says what."""


class Unavailable(Exception):
    """There is no engine here, and none can be started; the text says why."""


def run(
    command: Sequence[str | Path],
    *,
    environ: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    said: bytes = b"",
    cwd: Path | None = None,
) -> str:
    """What `command` prints on stdout; it reads `said`. Raises `Failure` unless it exits with 0 in time."""
    done = attempt(command, environ=environ, seconds=seconds, said=said, cwd=cwd)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).decode(errors="replace")[-TAIL:].strip()
        raise Failure(f"`{' '.join(map(str, command))}` exited with {done.returncode}:\n{output}")
    return done.stdout.decode(errors="replace")


def attempt(
    command: Sequence[str | Path],
    *,
    environ: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    said: bytes = b"",
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """The same, whatever it exits with."""
    try:
        return subprocess.run(
            [str(word) for word in command],
            input=said,
            capture_output=True,
            env=environ,
            timeout=seconds,
            check=False,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"`{' '.join(map(str, command))}` took longer than {seconds:g} s") from error
    except OSError as error:
        raise Failure(f"`{command[0]}`: {error.strerror}") from error


def wait(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Until `condition()`. Raises `Failure` that says `what` did not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds:g} s: {what}")
        time.sleep(POLL_SECONDS)

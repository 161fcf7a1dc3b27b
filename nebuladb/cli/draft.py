"""A file that appears whole or not at all."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final, NoReturn

PREFIX: Final = b".nebula-draft-"
ENDS: Final = (signal.SIGTERM, signal.SIGHUP)
"""What ends us by itself at once; the second when our terminal is closed."""


@contextmanager
def tidy_end() -> Iterator[None]:
    """During the block each of `ENDS` raises SystemExit, so that no draft is left behind. What is ignored, as SIGHUP is
    under nohup, stays so."""
    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in ENDS if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)  # as a shell says it


class Draft:
    """What is written beside `target`, under a name of its own, until `finish` gives it that one."""

    def __init__(self, target: bytes) -> None:
        """Raises OSError."""
        self._target = target
        descriptor, self._name = tempfile.mkstemp(prefix=PREFIX, dir=os.path.dirname(target) or b".")
        self._file: IO[bytes] = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Add `data`. Raises OSError."""
        self._file.write(data)

    def finish(self, mode: int, group: int = -1) -> None:
        """Take the place of the target, with these permissions and of this group (-1: ours). Raises OSError."""
        os.fchown(self._file.fileno(), -1, group)  # before the mode, of which it may take something
        os.fchmod(self._file.fileno(), mode)
        self._file.close()
        os.replace(self._name, self._target)

    def discard(self) -> None:
        """Leave nothing behind; nothing happens after `finish`."""
        with suppress(OSError):  # it holds what can't be written
            self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._name)

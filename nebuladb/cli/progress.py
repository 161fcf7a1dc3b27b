"""What a long command says on stderr while it works."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

import click

LINE_EVERY: Final = 1.0
BAR_EVERY: Final = 0.1
"""Seconds between two lines, or two paintings of the bar."""

WIDTH: Final = 30


class Progress:
    """A bar on a terminal, else a line now and then; and notes that leave the bar whole."""

    def __init__(
        self, stream: TextIO, verb: str, *, noun: str = "files", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`verb`: what is being done, e.g. "loaded"; `noun`: to what."""
        self._stream = stream
        self._verb = verb
        self._noun = noun
        self._clock = clock
        self._bar = stream.isatty()
        self._began = self._last = clock()
        self._painted = False

    def update(self, files: int, size: int, of: int = 0) -> None:
        """So many files (or what they are) and bytes are done, `of` that many files (0: unknown)."""
        now = self._clock()
        if now - self._last < (BAR_EVERY if self._bar else LINE_EVERY):
            return
        self._last = now
        rate = size / max(now - self._began, 0.001)
        text = f"{files:,}{f' of {of:,}' if of else ''} {self._noun}, {_mib(size)}, {_mib(rate)}/s"
        if self._bar:
            full = WIDTH * min(files, of) // of if of else 0
            bar = f"[{'#' * full}{'.' * (WIDTH - full)}] " if of else ""
            click.echo(f"\r\033[K{bar}{text}", file=self._stream, nl=False)
            self._painted = True
        else:
            click.echo(f"{self._verb} {text}", file=self._stream)

    def note(self, message: str) -> None:
        """One line that stays."""
        self.close()
        click.echo(f"nebula-cli: {message}", file=self._stream)

    def close(self) -> None:
        """Wipe the bar."""
        if self._painted:
            click.echo("\r\033[K", file=self._stream, nl=False)
            self._painted = False


def _mib(size: float) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"

"""Logging: structlog, console for people and JSON for machines, on stderr, never waiting for its reader."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from typing import Final

import structlog
from structlog.typing import Processor

MAX_QUEUED_LINES: Final = 4096
CLOSE_SECONDS: Final = 1.0
QUIET_LIBRARIES: Final = ("uvicorn", "grpc", "asyncio")
"""They log through the standard library; from WARNING on it is of interest to us."""


class LineWriter:
    """A file of lines whose `write` never blocks: a thread writes them to a descriptor.

    Whoever reads our stderr may stop reading (a pipe with a stopped process behind it). Were the loop to wait for it,
    a log line would stop heartbeats and cost a leader its term. Beyond `MAX_QUEUED_LINES` lines are dropped and
    counted; the count is written when there is room again.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue `text`, or drop and count it."""
        with self._wake:
            if len(self._lines) >= MAX_QUEUED_LINES:
                self._dropped += 1
            else:
                self._lines.append(text)
                self._wake.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing to do: lines leave by themselves."""

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return os.isatty(self._fd)

    def close(self) -> None:
        """Give what is queued `CLOSE_SECONDS` to leave. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._closing:
                    self._wake.wait()
                if not self._lines:
                    return
                text = "".join(self._lines)
                self._lines.clear()
                if self._dropped:
                    text += f"({self._dropped} log lines dropped: their reader was too slow)\n"
                    self._dropped = 0
            try:
                _write_all(self._fd, text.encode("utf-8", "backslashreplace"))
            except OSError:
                # The reader is gone. A database outlives whoever read its log.
                continue


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def setup(node: str, log_format: str, log_level: str, fd: int | None = None) -> LineWriter:
    """Configure structlog and the standard library's logging for this process; every line names the `node`.

    `log_format` is auto, console or json (auto: console on a terminal), `log_level` a level's lower-case name, `fd`
    stderr unless given. Close what is returned as the last thing a process does. Callers never log keys, values,
    tokens or passwords.
    """
    writer = LineWriter(sys.stderr.fileno() if fd is None else fd)
    as_console = log_format == "console" or (log_format == "auto" and writer.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if as_console else "iso", utc=not as_console),
        _NodeName(node),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=writer.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if as_console
        # Not dict_tracebacks: it prints local variables, and those hold keys and values.
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    level = getattr(logging, log_level.upper())
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=writer),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    return writer


class _NodeName:
    """A processor that binds the node's name to every line, foreign libraries' among them."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __call__(self, logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["node"] = self._node
        return event

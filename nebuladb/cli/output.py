"""The three styles of output."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from enum import Enum
from typing import IO, Final

Field = bytes | str | int | float | bool | Mapping[str, int] | None

PAGE: Final = 1000
"""Rows that a table holds back in order to align them."""


class Style(Enum):
    """`-o`."""

    SIMPLE = "simple"
    JSON = "json"
    TABLE = "table"


class Output:
    """Rows on a byte stream; use it with ``with``, which writes what a table still holds.

    Raises `OSError`, with the filename "stdout", if the stream takes no more.
    """

    def __init__(self, style: Style, stream: IO[bytes]) -> None:
        self._style = style
        self._stream = stream
        self._rows: list[list[str]] = []
        self._names: tuple[str, ...] = ()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def row(self, fields: Mapping[str, Field], simple: bytes | None = None) -> None:
        """One result. `simple`: its line in the simple style; None: aligned as in a table. New fields, new table."""
        if self._style is Style.JSON:
            self._write(json.dumps({name: _plain(value) for name, value in fields.items()}).encode())
        elif self._style is Style.SIMPLE and simple is not None:
            self._write(simple)
        else:
            if tuple(fields) != self._names:
                self._align()
                self._names = tuple(fields)
                self._rows.append([name.upper().replace("_", " ") for name in fields])
            self._rows.append([printable(value) for value in fields.values()])
            if len(self._rows) >= PAGE:
                self._align()

    def flush(self) -> None:
        """Write everything now."""
        self._align()
        try:
            self._stream.flush()
        except OSError as error:
            raise named(error) from error

    def _write(self, line: bytes) -> None:
        try:
            self._stream.write(line + b"\n")
        except OSError as error:
            raise named(error) from error

    def _align(self) -> None:
        if not self._rows:
            return
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        for row in self._rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._write(line.rstrip().encode())
        self._rows.clear()


def named(error: OSError, name: str = "stdout") -> OSError:
    """`error` with the name of what it happened to."""
    return OSError(error.errno, error.strerror, name)


def _plain(value: Field) -> str | int | float | bool | Mapping[str, int] | None:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def printable(value: Field) -> str:
    """For people: bytes as text, with what can't be printed escaped."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if isinstance(value, Mapping):
        return " ".join(f"{name}={count}" for name, count in value.items())
    return "" if value is None else str(value)

"""What happened, as lines and as their hash: the proof that a seed replays."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

HASH_LINES: Final = 512


class Trace:
    """`show`, if given, gets every line."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._hash = blake2b(digest_size=8)
        self._lines: list[str] = []
        """Not hashed yet: hashing many at once is cheaper."""
        self._show = show

    def note(self, now: int, what: str, node: str = "", detail: object = "") -> None:
        """Add an event: virtual ms, its name, where, and anything whose text is the same in every process."""
        line = f"{now:>7} {node:<3} {what} {detail}"
        self._lines.append(line)
        if len(self._lines) >= HASH_LINES:
            self._hash_lines()
        if self._show is not None:
            self._show(line)

    def digest(self) -> str:
        """The hash of all lines so far, in hex."""
        self._hash_lines()
        return self._hash.hexdigest()

    def _hash_lines(self) -> None:
        self._hash.update("\n".join([*self._lines, ""]).encode())
        self._lines.clear()

"""How long a replica that had no room for a snapshot is left alone, before the next one."""

from __future__ import annotations

from typing import Final

FIRST_MS: Final = 15_000
LONGEST_MS: Final = 16 * FIRST_MS
"""Twice as long each time, at most."""


class Pauses:
    """Kept by the sender. What doesn't fit was sent, dropped, and sent again, all of it every few seconds for ever: the
    receiver's disk has plenty of room again as soon as that is dropped, so that its status alone says nothing.

    Times are milliseconds of one clock; a key is (group, replica)."""

    def __init__(self) -> None:
        self._pauses: dict[tuple[int, int], tuple[int, int]] = {}
        """→ how long, until when."""

    def failed(self, key: tuple[int, int], now: int) -> None:
        """It had no room."""
        span = min(2 * self._pauses[key][0], LONGEST_MS) if key in self._pauses else FIRST_MS
        self._pauses[key] = span, now + span

    def last(self, key: tuple[int, int], now: int) -> bool:
        """Whether it is to be left alone."""
        return key in self._pauses and now < self._pauses[key][1]

    def forget(self, key: tuple[int, int]) -> None:
        """It has one, or needs none from here. Idempotent."""
        self._pauses.pop(key, None)

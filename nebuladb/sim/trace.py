"""What happened, as lines and as a hash: the proof that a seed replays."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

HASH_EVENTS: Final = 512


class Trace:
    """`show`, if given, gets every line."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._hash = blake2b(digest_size=8)
        self._events: list[tuple[int, str, str, object]] = []
        """Not hashed yet: their text, of many at once, costs a third."""
        self._show = show

    def note(self, now: int, what: str, node: str = "", detail: object = "") -> None:
        """Add an event: virtual ms, its name, where, and anything that never changes and whose text is the same in
        every process."""
        self._events.append((now, what, node, detail))
        if len(self._events) >= HASH_EVENTS:
            self._hash_events()
        if self._show is not None:
            self._show(f"{now:>7} {node:<3} {what} {detail}")

    def digest(self) -> str:
        """The hash of all events so far, in hex."""
        self._hash_events()
        return self._hash.hexdigest()

    def _hash_events(self) -> None:
        self._hash.update(repr(self._events).encode())
        self._events.clear()

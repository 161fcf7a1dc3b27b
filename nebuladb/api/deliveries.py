"""What watches took out of their outboxes and clients have not taken yet: bounded for all of a node's streams."""

from __future__ import annotations

import asyncio
from typing import Final

from nebuladb.env import probe

SMALL_BYTES: Final = 64 << 10
"""A delivery up to here isn't counted, and never waits: the transport holds as much of each stream."""
MAX_DELIVERY_BYTES: Final = 64 << 20
"""Of larger ones. Each is encoded for its stream, so that 500 streams that nobody reads and one put of a MiB would else
be some gigabytes, made in one turn of the loop."""


class Deliveries:
    """Who doesn't fit waits in the order of coming; its events stay in its outbox, or in history."""

    def __init__(self, limit: int = MAX_DELIVERY_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: dict[asyncio.Event, int] = {}
        """Who waits, with what it wants. A dict as an ordered set."""

    def admits(self, size: int, room: asyncio.Event) -> bool:
        """Whether `size` bytes may be delivered now; then they count until `give`. If not, `room` is set when it is
        worth asking again. One that is larger than the bound goes alone."""
        if size <= SMALL_BYTES:
            self._waiting.pop(room, None)
            return True
        first = not self._waiting or next(iter(self._waiting)) is room
        if first and (not self.used or self.used + size <= self.limit):
            self._waiting.pop(room, None)
            self.used += size
            self._wake()
            return True
        probe("watch waits for slower ones")
        self._waiting[room] = size
        return False

    def give(self, size: int) -> None:
        """A delivery of `size` bytes was taken, or nobody will."""
        if size > SMALL_BYTES:
            self.used -= size
            self._wake()

    def forget(self, room: asyncio.Event) -> None:
        """Its stream has ended."""
        if self._waiting.pop(room, None) is not None:
            self._wake()

    def _wake(self) -> None:
        for room, size in self._waiting.items():
            if not self.used or self.used + size <= self.limit:
                room.set()
            break

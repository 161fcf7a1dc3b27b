"""What calls that wait for long have asked for: names and keys of up to 2 MiB, which stay in memory until they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nebuladb.errors import TooManyRequests

MAX_BYTES: Final = 64 << 20
"""Of all such calls of a node, copies included."""
SMALL_BYTES: Final = 1 << 10
"""What takes no more isn't counted: the number of calls, and of watches, bounds it."""


class Asked:
    """Their bytes."""

    def __init__(self) -> None:
        self.held = 0

    def take(self, size: int) -> int:
        """`size` bytes more are held; what is to be given back. Raises `TooManyRequests`."""
        if size <= SMALL_BYTES:
            return 0
        if self.held + size > MAX_BYTES:
            raise TooManyRequests(
                f"the names and keys that calls on this node wait for take {MAX_BYTES >> 20} MiB; use shorter ones"
            )
        self.held += size
        return size

    def give(self, size: int) -> None:
        """So many are held no more."""
        self.held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold them for as long as this takes. Raises as `take`."""
        taken = self.take(size)
        try:
            yield
        finally:
            self.give(taken)

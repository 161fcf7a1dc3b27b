"""Which turn of the loop it is."""

from __future__ import annotations

import asyncio


class Turns:
    """Counts from when it is made, as long as the loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 0
        self._count()

    def _count(self) -> None:
        self.now += 1
        self._loop.call_soon(self._count)

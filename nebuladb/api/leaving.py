"""What streams that are over leave behind: it is seen to some at a time, whoever leaves how much."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

AT_ONCE: Final = 256
"""Steps of a turn of the loop: watches that are forgotten, say, which takes up to 15 us for one of many ranges."""
_ENDED: Final = object()


class Leaving:
    """For all streams of a node."""

    def __init__(self) -> None:
        self._left: deque[Iterator[object]] = deque()
        self._scheduled = False

    def add(self, steps: Iterator[object]) -> None:
        """Take the steps of an iterator, at once as far as this turn allows. None may raise."""
        self._left.append(steps)
        if not self._scheduled:
            self._some()

    def _some(self) -> None:
        self._scheduled = bool(self._left)
        if not self._left:
            return
        # Also if all is done now: what others leave in this turn waits for the next one.
        asyncio.get_running_loop().call_soon(self._some)
        for _ in range(AT_ONCE):
            while next(self._left[0], _ENDED) is _ENDED:
                self._left.popleft()
                if not self._left:
                    return

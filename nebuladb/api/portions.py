"""What watches are told in one turn of the loop: one write may be of concern to all of a node's."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from nebuladb.env import probe

TURN_BYTES: Final = 8 << 20
"""Of all watches together, and one delivery more. Each is encoded and handed over, a millisecond a MiB."""
EACH_BYTES: Final = 32 << 10
"""What a delivery counts beside its bytes: 40 us."""


class Portions:
    """Who wants to be told something waits for its turn, in the order of coming."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._spent = 0
        """In this turn of the loop."""

    async def turn(self, size: int) -> bool:
        """Wait until `size` bytes may be told; whether that took a turn of the loop, in which all else may change."""
        cost = size + EACH_BYTES
        if not self._waiting and self._spent < TURN_BYTES:
            self._spend(cost)
            return False
        probe("a watch waits for its turn")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, turn))
        await turn
        return True

    def _spend(self, cost: int) -> None:
        if not self._spent:
            asyncio.get_running_loop().call_soon(self._next)
        self._spent += cost

    def _next(self) -> None:
        """Another turn has begun."""
        self._spent = 0
        while self._waiting and self._spent < TURN_BYTES:
            cost, turn = self._waiting.popleft()
            if not turn.done():  # its stream may have ended
                turn.set_result(None)
                self._spend(cost)

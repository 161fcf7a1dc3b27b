"""Long reads, in stretches of a turn each, take turns: together they keep the loop no longer than one of them would."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import TracebackType
from typing import Final, Self

from nebuladb.env import probe
from nebuladb.node.pump import REST

STRETCH_SECONDS: Final = 0.005
"""Of all stretches between two breaths of the loop, about."""


class Pace:
    """``async with pace:`` around a stretch; if it must wait for the disk within, that counts as its time. Who waits is
    bounded by the pins of the stores, and by calls."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._spent = self._begun = 0.0
        self._resting = False

    async def __aenter__(self) -> Self:
        if self._waiting or self._spent >= STRETCH_SECONDS:
            probe("a long read waits for others")
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._rest()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._rest()  # it was its turn: the next one's
                raise
        self._begun = time.perf_counter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spent += time.perf_counter() - self._begun
        self._rest()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            asyncio.get_running_loop().call_soon(self._go_on, 0.0)

    def _go_on(self, rested: float) -> None:
        """The next one's turn, once all that was spent is rested for; for `rested` seconds of it that was done. There
        may be more: of stretches that ended in the same turn, or that had begun before and ended in the rest."""
        owed = self._spent - rested
        if owed > STRETCH_SECONDS:
            asyncio.get_running_loop().call_later(owed * REST, self._go_on, self._spent)
            return
        self._resting, self._spent = False, 0.0
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break

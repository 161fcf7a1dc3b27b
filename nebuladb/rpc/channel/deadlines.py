"""Deadlines of calls: a timer wheel on one loop timer.

Nearly every call ends long before its deadline, so what must be cheap is to add and to drop one: two dictionary
operations here, against a timer of the loop made and cancelled. The price is precision: a call ends up to 1/64 of its
timeout (and a millisecond) late.
"""

from __future__ import annotations

import asyncio
import heapq
from time import monotonic
from typing import Final, Protocol

LONGEST_SLEEP: Final = 3600.0
"""Seconds of one loop timer; deadlines past it are looked at again then."""
PRECISION_BITS: Final = 7
"""A slot is as wide as the timeout's milliseconds over 2^(bits - 1), rounded down to a power of two. So there are at
most 2^bits slots in use a power of two of timeouts, however many calls there are."""


class Expires(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """The deadline has passed."""
        ...


class Deadlines:
    """Calls by the slot in which they expire; a slot is a number of milliseconds on the monotonic clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, dict[Expires, None]] = {}
        self._order: list[int] = []
        """The slots, as a heap."""
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0
        """The slot for which the timer is set."""

    def add(self, call: Expires, timeout: float, deadline: float) -> int:
        """Expire `call` at `deadline` (monotonic seconds), `timeout` seconds from now. Returns its slot, for `drop`."""
        millis = int(timeout * 1000)
        width = 1 << max(0, millis.bit_length() - PRECISION_BITS)
        slot = (int(deadline * 1000) // width + 1) * width
        calls = self._slots.get(slot)
        if calls is None:
            self._slots[slot] = {call: None}
            heapq.heappush(self._order, slot)
            if self._timer is None or slot < self._next:
                self._arm()
        else:
            calls[call] = None
        return slot

    def drop(self, call: Expires, slot: int) -> None:
        """The call has ended. An empty slot stays until its time: the next call most likely falls into it."""
        calls = self._slots.get(slot)
        if calls is not None:
            calls.pop(call, None)

    def close(self) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._order.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = self._order[0]
        delay = min(max(self._next / 1000 - monotonic(), 0.0), LONGEST_SLEEP)
        self._timer = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = int(monotonic() * 1000)
        while self._order and self._order[0] <= now:
            for call in self._slots.pop(heapq.heappop(self._order)):
                call.expire()
        if self._order and self._timer is None:
            self._arm()

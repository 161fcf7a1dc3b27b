"""Octets that are more than a turn of the loop should take: connections share what it may, and go on in the next."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, Protocol

from nebuladb.env import probe

LOG: Final = logging.getLogger("nebuladb.rpc")
TURN_SECONDS: Final = 0.01
"""That the large reads of all connections may take of a turn. libuv reads one socket up to 32 times, 256 KiB each,
before it looks at another: 8 MiB of small requests are seconds in which nobody else would be served."""
MOST_HELD: Final = 32 << 20
"""Octets of all connections that may wait for a turn. What is read past it is handled at once: thousands of connections
that each had a read of libuv's wait here would be gigabytes."""


class Taker(Protocol):
    """A connection with more to handle than it may at once."""

    def proceed(self, until: float) -> bool:
        """Handle some of it, and begin nothing more after `until`, monotonic seconds. False: nothing is left, or it
        can't go on."""
        ...

    def abort(self) -> None:
        """Drop the connection."""
        ...


class Turns:
    """Who waits for a turn: in line, a slice each, until the time is used."""

    def __init__(self) -> None:
        self._waiting: dict[Taker, None] = {}
        self._scheduled = False
        self.held = 0
        """Octets that wait, as those who wait count them."""
        self._until = 0.0
        """When the time of the present turn is used, monotonic seconds; 0: none of it is."""

    def at_once(self, one: Taker) -> bool:
        """Let `one` handle what it has just read, if nobody waits and this turn has time left; whether that was all."""
        if self._waiting:
            return False
        now = time.monotonic()
        if not self._until:
            self._until = now + TURN_SECONDS
            asyncio.get_running_loop().call_soon(self._over)
        while now < self._until:
            if not one.proceed(self._until):
                return True
            now = time.monotonic()
        return False

    def _over(self) -> None:
        self._until = 0.0

    def add(self, one: Taker) -> None:
        """`one` has something to handle; it may wait already."""
        self._waiting[one] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        waiting = self._waiting
        until = time.monotonic() + TURN_SECONDS
        while waiting:
            one = next(iter(waiting))
            del waiting[one]
            try:
                if one.proceed(until):
                    waiting[one] = None
            except Exception:
                # Ours, whatever it is; it must not cost the others their turn.
                LOG.exception("a connection failed")
                one.abort()
            if waiting and time.monotonic() >= until:
                probe("rpc: what was read waits for a later turn")
                self._schedule()
                return

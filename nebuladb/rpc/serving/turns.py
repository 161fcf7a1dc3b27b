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

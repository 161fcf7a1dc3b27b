"""Rates, counted on the owner's clock."""

from __future__ import annotations

from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError
from nebuladb.rpc.http2.limits import Rate


class Bucket:
    """A leaky bucket: `burst` drops fit, `per_second` leak. Made full of room at the first drop.

    Invariant: 0 ≤ level ≤ burst. A clock that stands still or goes back leaks nothing.
    """

    __slots__ = ("_at", "_level", "_rate", "_what")

    def __init__(self, what: str, rate: Rate) -> None:
        self._what = what
        self._rate = rate
        self._level = 0.0
        self._at = 0.0

    def drop(self, now: float) -> None:
        """One more at `now` (seconds, monotonic).

        Raises:
            RemoteProtocolError: ENHANCE_YOUR_CALM, if the bucket runs over.
        """
        burst, per_second = self._rate
        if now > self._at:
            self._level = max(0.0, self._level - (now - self._at) * per_second)
            self._at = now
        if self._level + 1 > burst:
            raise RemoteProtocolError(f"too many {self._what}", ErrorCode.ENHANCE_YOUR_CALM)
        self._level += 1

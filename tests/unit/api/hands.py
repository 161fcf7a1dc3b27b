"""A clock that goes on when it is told to."""

from __future__ import annotations

from collections.abc import Callable


class Handle:
    """A call that is due at `when`, unless it is done."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.done = False

    def cancel(self) -> None:
        self.done = True


class Hands:
    """`nebuladb.api.deliveries.Clock`, moved by hand."""

    def __init__(self) -> None:
        self._now = 0.0
        self._calls: list[Handle] = []

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Handle:
        handle = Handle(self._now + delay, callback)
        self._calls.append(handle)
        return handle

    def pass_by(self, seconds: float) -> None:
        """So many seconds, and what is due in them."""
        until = self._now + seconds
        while due := [handle for handle in self._calls if handle.when <= until and not handle.done]:
            handle = min(due, key=lambda handle: handle.when)
            self._now = max(self._now, handle.when)
            handle.done = True
            handle.callback()
        self._now = until

    @property
    def idle(self) -> bool:
        """Nothing is due, ever."""
        return all(handle.done for handle in self._calls)

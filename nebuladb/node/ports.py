"""What the pump is joined to: links to other nodes, clients' connections, the books, and the disk's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from nebuladb.node.rows_asked import Values


class Links(Protocol):
    """Where frames go; a full or missing link drops them."""

    def send(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Write frames, each to its node, as far as it can be at once; never waits."""
        ...


class Answers(Protocol):
    """Where answers go, by the waiters of a turn's futures."""

    def hold(self) -> None:
        """Waiters are woken now: write nothing before `flush`."""
        ...

    def flush(self) -> None:
        """Those that go on at once have: write what they answered."""
        ...


class Meter(Protocol):
    """What the pump counts (``server.metrics``)."""

    def log_fsync(self, seconds: float) -> None: ...
    def log_batch(self, size: int) -> None: ...
    def applied(self, entries: int, seconds: float) -> None: ...


class Fetches(Protocol):
    """Who reads rows from the disk (``node.fetcher``)."""

    def fetch(self, rows: Sequence[bytes], done: Callable[[Values | BaseException], object]) -> None:
        """Read `rows`, at least one; `done` is called once, perhaps in another thread."""
        ...

"""What a node knows of another one that it is, or was, connected to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

FORWARD_WINDOW: Final = 65_536
"""How far out of order a peer's forwards may come; older ones are dropped as repeats."""


@dataclass(slots=True)
class Peer:
    """A node that is, or was, connected."""

    incarnation: int
    to_it: bytes
    """The address of our frames to it (`frame.ADDRESS`)."""
    to_us: bytes
    """That of its frames."""
    connected: bool = True
    since: int = 0
    """When it was connected or lost last, ms."""
    heard: int = 0
    """When a frame of it came last, ms."""
    silent: bool = False
    """Connected, but no frame came for `SILENT_MS`."""
    status: int = 0
    """What it says of its disk (``node.disk``)."""
    highest: int = 0
    """The highest number that a forward of its bore."""
    seen: set[int] = field(default_factory=set)
    """Numbers of its forwards, all of the last `FORWARD_WINDOW` among them, so that a repeated one isn't run twice."""

    @property
    def near(self) -> bool:
        """Whether it is heard from."""
        return self.connected and not self.silent

    @property
    def well(self) -> bool:
        """Whether it is, and its disk lets it lead."""
        return self.near and not self.status

    def first_time(self, number: int) -> bool:
        """Whether forward `number` is new here."""
        if number in self.seen or number <= self.highest - FORWARD_WINDOW:
            return False
        self.seen.add(number)
        self.highest = max(self.highest, number)
        if len(self.seen) > 2 * FORWARD_WINDOW:
            self.seen = {seen for seen in self.seen if seen > self.highest - FORWARD_WINDOW}
        return True

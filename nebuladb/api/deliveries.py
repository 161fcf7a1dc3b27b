"""What watches took out of their outboxes, and scans read, and clients have not taken yet: bounded for all of a node's
streams.

Who holds a part of it while others wait for theirs has a short time; then its stream is ended, and its client goes on
where it was. So a client that doesn't read, or reads a few bytes now and then, costs itself and nobody else.

``grpc.aio`` has nothing that ends a stream whose client doesn't read. There what such a client holds is not counted
after that time: others go on, and all that bounds such streams is that each holds one delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from nebuladb.env import probe

SMALL_BYTES: Final = 64 << 10
"""A delivery up to here isn't counted, and never waits: the transport holds as much of each stream."""
MEDIUM_BYTES: Final = 1 << 20
"""Deliveries up to here have a part of the bound for themselves: they don't wait for room for a large one, and a large
one doesn't wait for them."""
MAX_DELIVERY_BYTES: Final = 64 << 20
"""Of those that count. Each is encoded for its stream, so that 500 streams that nobody reads and one put of a MiB would
else be some gigabytes, made in one turn of the loop."""
MEDIUM_PART: Final = 4
"""One in so many bytes of it is for those up to `MEDIUM_BYTES`."""
PATIENCE_SECONDS: Final = 2.0
"""So long a delivery may keep others waiting."""
PACE_BYTES: Final = 2 << 20
"""And a second longer for each so many bytes of it: clients on slow lines that all want one large revision would else
end each other for ever, and none get it."""


class Clock(Protocol):
    """Of an event loop."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Any: ...


def ending(context: Any) -> Callable[[], None] | None:
    """What ends a handler's call at once, and frees what its transport holds; ``grpc.aio`` has nothing that does."""
    return getattr(context, "drop", None)


class Delivery:
    """One stream's deliveries, one after the other. `end`, if there is one, ends the stream at once, and frees what the
    transport holds of it; it may not call back. Without it the stream stays, and holds uncounted what it has."""

    __slots__ = ("_deliveries", "end", "lane", "room", "since", "size")

    def __init__(self, deliveries: Deliveries, room: asyncio.Event, end: Callable[[], None] | None) -> None:
        self._deliveries = deliveries
        self.room = room
        self.end = end
        self.lane: Lane | None = None
        """Where it holds `size` bytes since `since`, or waits for them."""
        self.size = 0
        self.since = 0.0

    def admits(self, size: int) -> bool:
        """Whether `size` bytes may be delivered now; then they count until `give`. If not, `room` is set when it is
        worth asking again."""
        if size <= SMALL_BYTES:
            if self.lane is not None:
                self.give()
            return True
        return self._deliveries.lane(size).admits(self, size)

    def begin(self) -> None:
        """The client may take what it holds: its time begins."""
        if self.lane is not None:
            self.lane.begin(self)

    def give(self) -> None:
        """What was delivered was taken, or nobody will take it; nothing is waited for any more."""
        if self.lane is not None:
            self.lane.drop(self)


class Lane:
    """A part of the bound. Who doesn't fit waits in the order of coming; its events stay in its outbox, or in history.
    A delivery that is larger than the part goes alone."""

    def __init__(self, limit: int, clock: Clock | None) -> None:
        self.limit = limit
        self.used = 0
        self._clock = clock
        self._holding: dict[Delivery, None] = {}
        """Dicts as ordered sets."""
        self._waiting: dict[Delivery, None] = {}
        self._waited = 0.0
        """Since when somebody waits, without a break."""
        self._timer: Any = None

    def admits(self, delivery: Delivery, size: int) -> bool:
        """See `Delivery.admits`."""
        # Its turn may have come while it waited; and what it waited with may have grown meanwhile.
        if delivery in self._holding and self._fits(size, beside=self.used - delivery.size):
            self.used += size - delivery.size
            delivery.size = size
            self._serve()
            return True
        if delivery not in self._waiting:
            delivery.give()
            self._waiting[delivery] = None
            delivery.lane = self
        delivery.size = size
        self._serve(delivery)
        if delivery in self._holding:
            return True
        probe("watch waits for slower ones")
        return False

    def begin(self, delivery: Delivery) -> None:
        """See `Delivery.begin`."""
        delivery.since = self._now()

    def drop(self, delivery: Delivery) -> None:
        """It holds nothing, and waits for nothing."""
        delivery.lane = None
        if delivery in self._holding:
            del self._holding[delivery]
            self.used -= delivery.size
        else:
            del self._waiting[delivery]
        self._serve()

    def _fits(self, size: int, *, beside: int) -> bool:
        """Whether there is room for `size` bytes beside so many; beside none there always is."""
        return not beside or beside + size <= self.limit

    def _serve(self, asking: Delivery | None = None) -> None:
        """Give the first that waits what it waits for, and the next. They hold it from now on, whether they look or
        not: one that is held up elsewhere would else keep its place, and all behind it waiting."""
        while self._waiting:
            delivery = next(iter(self._waiting))
            if not self._fits(delivery.size, beside=self.used):
                break
            del self._waiting[delivery]
            self._holding[delivery] = None
            self.used += delivery.size
            delivery.since = self._now()
            if delivery is not asking:
                delivery.room.set()
        if not self._waiting:
            self._stop()
        elif self._timer is None:
            self._waited = self._now()
            self._arm()

    # --- who keeps others waiting

    def _due(self, delivery: Delivery) -> float:
        """When its time is up."""
        return max(delivery.since, self._waited) + PATIENCE_SECONDS + delivery.size / PACE_BYTES

    def _arm(self) -> None:
        due = min(map(self._due, self._holding))  # nobody waits unless somebody holds
        self._timer = self._loop().call_later(max(0.0, due - self._now()), self._look)

    def _look(self) -> None:
        """End who holds for too long what others wait for: one, and the next if that makes not enough room. One that
        can't be ended isn't counted any longer."""
        late = min(self._holding, key=self._due, default=None)
        if late is not None and self._due(late) <= self._now():
            self.drop(late)
            if late.end is not None:
                probe("watch that keeps others waiting is ended")
                late.end()
            else:
                probe("watch that keeps others waiting can't be ended")
        if self._waiting:
            self._arm()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _loop(self) -> Clock:
        return self._clock or asyncio.get_running_loop()

    def _now(self) -> float:
        return self._loop().time()


class Deliveries:
    """What all streams of one node may hold together: a lane for medium deliveries, and one for large ones."""

    def __init__(self, limit: int = MAX_DELIVERY_BYTES, clock: Clock | None = None) -> None:
        """`limit` in bytes. Without a `clock` the running loop's is used."""
        self._medium = Lane(limit // MEDIUM_PART, clock)
        self._large = Lane(limit - limit // MEDIUM_PART, clock)

    @property
    def used(self) -> int:
        """Bytes that are held."""
        return self._medium.used + self._large.used

    def stream(self, room: asyncio.Event, end: Callable[[], None] | None = None) -> Delivery:
        """For a stream, which calls `give` when it has ended."""
        return Delivery(self, room, end)

    def lane(self, size: int) -> Lane:
        """Where a delivery of `size` bytes counts."""
        return self._medium if size <= MEDIUM_BYTES else self._large

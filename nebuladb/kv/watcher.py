"""One watch: what it wants, how far it has come, and what waits to be sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import Change
from nebuladb.kv.check import in_range
from nebuladb.storage.share import Share

OUTBOX_EVENTS: Final = 1024
OUTBOX_BYTES: Final = 4 << 20
"""What may wait for a watcher's consumer. A revision larger than that is taken whole where nothing else waits."""

EVENT_OVERHEAD: Final = 64


class Event(NamedTuple):
    """A change as a watch tells it."""

    kv: KeyValue
    """Of a deletion: key and mod revision only."""
    deleted: bool
    previous: KeyValue | None = None


class EventBatch(NamedTuple):
    """All events of one revision that a watch wants; never part of them (etcd 37)."""

    revision: int
    events: tuple[Event, ...]


class Watcher:
    """Made by `WatchHub.watch`, and fed by it.

    `cursor`: every event of a revision below it was put into the outbox, or isn't wanted; none of a revision at or
    above it was. It never goes back, which is what makes the watch ordered, without gaps and without repeats.
    """

    def __init__(
        self,
        key: bytes,
        end: bytes,
        cursor: int,
        *,
        prev_kv: bool = False,
        no_put: bool = False,
        no_delete: bool = False,
        outbox_events: int = OUTBOX_EVENTS,
        outbox_bytes: int = OUTBOX_BYTES,
        share: Share | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.key = key
        self.end = end
        self.cursor = cursor
        self.prev_kv = prev_kv
        self.lagging = True
        """Fed from history, not from the live feed."""
        self.canceled = False
        """Nothing comes any more, after what `take` still holds."""
        self.compact_revision = 0
        """Why, if not 0: revisions that it wanted are compacted; this is the oldest that can be had (etcd 36)."""
        self._no_put = no_put
        self._no_delete = no_delete
        self._events_limit = outbox_events
        self._bytes_limit = outbox_bytes
        self._share = share or Share(outbox_bytes)
        self._on_ready = on_ready
        self._outbox: deque[EventBatch] = deque()
        self._count = 0
        self._size = 0
        self._blocked = False
        """The next revision doesn't fit."""

    @property
    def full(self) -> bool:
        """Whether nothing more is put into the outbox until it is drained."""
        return self._blocked or self._count >= self._events_limit or self._size >= self._bytes_limit

    def take(self) -> list[EventBatch]:
        """Everything that waits, in order; the outbox is empty then. The hub must get a `catch_up` after it."""
        batches = list(self._outbox)
        self.discard()
        return batches

    def discard(self) -> None:
        """Nobody will take what waits."""
        self._outbox.clear()
        self._share.give(self._size)
        self._count = self._size = 0
        self._blocked = False

    def wants(self, change: Change) -> bool:
        """Whether a change is in its range and not filtered (etcd 39)."""
        if self._no_delete if change.deleted else self._no_put:
            return False
        return in_range(change.key, self.key, self.end)

    def deliver(self, revision: int, changes: list[Change]) -> bool:
        """Put a revision's wanted changes into the outbox; False, and nothing is done, if they don't fit."""
        events = [self._event(change) for change in changes]
        size = sum(_size(event) for event in events)
        # An empty outbox takes any revision: else one larger than the bounds could never be told.
        if self._outbox and (
            self._count + len(events) > self._events_limit
            or self._size + size > self._bytes_limit
            or not self._share.fits(size)
        ):
            self._blocked = True
            return False
        first = not self._outbox
        self._outbox.append(EventBatch(revision, tuple(events)))
        self._count += len(events)
        self._size += size
        self._share.take(size)
        self.cursor = revision + 1
        if first:
            self._wake()
        return True

    def cancel(self, compact_revision: int) -> None:
        """No more events after what waits."""
        self.canceled = True
        self.compact_revision = compact_revision
        self._wake()

    def _wake(self) -> None:
        if self._on_ready is not None:
            self._on_ready()

    def _event(self, change: Change) -> Event:
        return Event(change.kv, change.deleted, change.previous_kv if self.prev_kv else None)


def _size(event: Event) -> int:
    size = len(event.kv.key) + len(event.kv.value) + EVENT_OVERHEAD
    return size if event.previous is None else size + len(event.previous.value)

"""One watch: what it wants, how far it has come, and what waits to be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import Change
from nebuladb.share import Share

OUTBOX_EVENTS: Final = 4096
OUTBOX_BYTES: Final = 4 << 20
"""What may wait for a watcher's consumer. A batch larger than that is taken where nothing else waits."""

EVENT_OVERHEAD: Final = 256
"""Bytes that an event takes beside its key and values."""


class Event(NamedTuple):
    """A change as a watch tells it."""

    kv: KeyValue
    """Of a deletion: key and mod revision only."""
    deleted: bool
    previous: KeyValue | None = None


class EventBatch:
    """Events of one revision that a watch wants: all, or of a large revision a part, of which no two need be in memory
    at once. Those who want the same share it."""

    __slots__ = ("events", "more", "revision", "size", "wire")

    def __init__(self, revision: int, events: tuple[Event, ...], *, more: bool = False) -> None:
        self.revision = revision
        self.events = events
        self.more = more
        """The next batch has more of the revision; the last of them may be empty."""
        self.size = size_of(events)
        """Bytes, about."""
        self.wire: tuple[bytes, ...] | None = None
        """What the api has made of `events`, once for all who are told them."""


def told_as(changes: Iterable[Change], *, previous: bool) -> tuple[Event, ...]:
    """A revision's changes as they are told; with `previous` each has what the key was before."""
    return tuple(Event(change.kv, change.deleted, change.previous_kv if previous else None) for change in changes)


def size_of(events: Iterable[Event]) -> int:
    """Bytes, about."""
    return sum(_size(event) for event in events)


class Watcher:
    """Made by `WatchHub.watch`, and fed by it.

    `position`, a revision and a number of changes in it: every event below it was put into the outbox, or isn't wanted;
    none at or above it was. It never goes back, which is what makes the watch ordered, without gaps and without
    repeats.
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
        self.position = cursor, 0
        self.prev_kv = prev_kv
        self.lagging = True
        """Fed from history, not from the live feed."""
        self.on_room: Callable[[Watcher], None] | None = None
        """The hub's: it lags and was full, and has been drained."""
        self.canceled = False
        """Nothing comes any more, after what `take` still holds."""
        self.compact_revision = 0
        """Why, if not 0: revisions that it wanted are compacted; this is the oldest that can be had (etcd 36)."""
        self.kind = key, end, prev_kv, no_put, no_delete
        """Those that have it in common want the same."""
        self._no_put = no_put
        self._no_delete = no_delete
        self._events_limit = outbox_events
        self._bytes_limit = outbox_bytes
        self._share = share or Share(outbox_bytes)
        self.on_ready = on_ready
        """Whoever made it takes it away when all is over: it may know what the watcher is known by."""
        self._outbox: list[EventBatch] = []
        self._count = 0
        self._size = 0
        self._blocked = False
        """The next batch doesn't fit."""
        self.amid = False
        """The last batch that was put into the outbox says that there is more of its revision."""

    @property
    def cursor(self) -> int:
        """The first revision that it wasn't told all of."""
        return self.position[0]

    @property
    def full(self) -> bool:
        """Whether nothing more is put into the outbox until it is drained."""
        return self._blocked or self._count >= self._events_limit or self._size >= self._bytes_limit

    @property
    def waiting(self) -> int:
        """Bytes, about, that `take` would give."""
        return self._size

    @property
    def count(self) -> int:
        """Events that `take` would give."""
        return self._count

    def take(self) -> list[EventBatch]:
        """Everything that waits, in order; the outbox is empty then. If it lags, the hub must get a `catch_up` now."""
        batches = self._outbox
        self.discard()
        if self.on_room is not None:
            self.on_room(self)
        return batches

    def discard(self) -> None:
        """Nobody will take what waits."""
        self._outbox = []
        self._share.give(self._size)
        self._count = self._size = 0
        self._blocked = False

    def wants(self, change: Change) -> bool:
        """Whether a change of its range passes its filters (etcd 39)."""
        return not (self._no_delete if change.deleted else self._no_put)

    def deliver(self, batch: EventBatch, sub: int = 0) -> bool:
        """Put the wanted changes of a revision into the outbox; False, and nothing is done, if they don't fit. `sub`:
        where in the revision a part ends."""
        # An empty outbox takes anything: else what is larger than the bounds could never be told.
        if self._outbox and (
            self._count + len(batch.events) > self._events_limit
            or self._size + batch.size > self._bytes_limit
            or not self._share.fits(batch.size)
        ):
            self._blocked = True
            return False
        if self.amid:
            self.reach((batch.revision, 0))
        self.amid = batch.more
        self.position = (batch.revision, sub) if batch.more else (batch.revision + 1, 0)
        self._put(batch)
        return True

    def reach(self, position: tuple[int, int]) -> None:
        """Everything below `position` was delivered, or isn't wanted."""
        if position > self.position:
            if self.amid and position[0] > self.position[0]:
                self.amid = False
                self._put(EventBatch(self.position[0], ()))  # nothing else of what it was told a part of is wanted
            self.position = position

    def _put(self, batch: EventBatch) -> None:
        self._outbox.append(batch)
        self._count += len(batch.events)
        self._size += batch.size
        self._share.take(batch.size)
        if len(self._outbox) == 1:
            self._wake()

    def cancel(self, compact_revision: int) -> None:
        """No more events after what waits."""
        self.canceled = True
        self.compact_revision = compact_revision
        self._wake()

    def _wake(self) -> None:
        if self.on_ready is not None:
            self.on_ready()


def _size(event: Event) -> int:
    size = len(event.kv.key) + len(event.kv.value) + EVENT_OVERHEAD
    return size if event.previous is None else size + len(event.previous.value)

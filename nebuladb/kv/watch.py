"""Watches of one shard: a live feed for those that keep up, one shared walk over history for those that don't.

Pure and synchronous. The caller calls `publish` after every apply in the same turn, and `catch_up` when a watch was
made, when a consumer drained an outbox and while it returns True.

The promises (etcd 45): ordered, each event once, none left out, resumable from any revision that isn't compacted. They
rest on `Watcher.position` alone: the feed and the walk both skip what is below it and move it up with what they
deliver, so it doesn't matter in which order they come. A revision is told whole, but for a large one: that comes in
parts, with a mark at all but the last, so that nobody needs to hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import InvalidArgument, TooManyRequests, Unavailable, invariant
from nebuladb.kv.change import Applied, Change
from nebuladb.kv.check import TO_THE_LAST
from nebuladb.kv.interest import BEGINNING, Interest, before_the_revision
from nebuladb.kv.store import Store
from nebuladb.kv.watcher import OUTBOX_BYTES, OUTBOX_EVENTS, EventBatch, Watcher
from nebuladb.share import Share

MAX_WATCHERS: Final = 50_000
"""Of one shard on one node. An idle one is less than a KiB."""

MAX_DELIVERIES: Final = 20_000
"""Batches that one stretch of history gives out, about, and changes times ranges that it looks at: some 30 ms."""

MAX_LIVE: Final = 100_000
"""Likewise of what one apply publishes; the rest is told out of history."""

LARGE: Final = 256
"""Changes of one revision that history tells at once, unless they are too many bytes for that; of more, so many at a
time. An outbox has room for many such parts, so that watches which are taken from at other paces share what is read."""

FEED: Final = 4
"""The feed, which has them in memory as it is, tells so many times as many at once."""


class WatchHub:
    """Feeds watchers from `store`. After a snapshot install `rebase` gives it the new store (S26)."""

    def __init__(self, store: Store, outboxes: Share | None = None, on_lag: Callable[[], None] = lambda: None) -> None:
        """`outboxes`: what all watchers of the node may keep waiting together; past it they fall back to history.
        `on_lag` is called when a watcher begins to lag: `catch_up` has work. It may not call back into the hub."""
        self._store = store
        self._outboxes = outboxes
        self._on_lag = on_lag
        self._revision = store.revision
        """What the live feed has published."""
        self._live = Interest()
        """In step with the live feed."""
        self._behind = Interest()
        """To be fed from history."""
        self._swept = BEGINNING
        """Where the last stretch of history ended: the next one begins with who is next above it."""
        self._stuck: dict[Watcher, None] = {}
        """To be fed from history when their outboxes are drained; until then they cost nothing."""
        self._closed = False

    def __len__(self) -> int:
        return len(self._live) + len(self._behind) + len(self._stuck)

    @property
    def lagging(self) -> bool:
        """Whether any watcher can be fed from history now."""
        return bool(self._behind.members)

    @property
    def revision(self) -> int:
        """A watcher that isn't lagging and whose outbox is empty has been told everything up to here."""
        return self._revision

    def watch(
        self,
        key: bytes,
        range_end: bytes = b"",
        start_revision: int = 0,
        *,
        prev_kv: bool = False,
        no_put: bool = False,
        no_delete: bool = False,
        outbox_events: int = OUTBOX_EVENTS,
        outbox_bytes: int = OUTBOX_BYTES,
        on_ready: Callable[[], None] | None = None,
    ) -> Watcher:
        """A watch from `start_revision`, inclusive; 0 = from now on. An empty key is ``\\0`` (etcd 42).

        A start below the floor gives a watcher that is canceled already (etcd 34, 36). `on_ready` is called within
        `publish` and `catch_up`, when an empty outbox gets its first batch and when the watch is canceled; it may not
        call back into the hub. Raises `InvalidArgument` for an empty range, `TooManyRequests`, and `Unavailable` once
        the shard has left this node.
        """
        if self._closed:
            raise Unavailable("this node serves the shard no more; watch again, at another node")
        if range_end and range_end != TO_THE_LAST and range_end <= key:
            raise InvalidArgument("watcher range is empty")
        if len(self) >= MAX_WATCHERS:
            raise TooManyRequests(f"the shard has {MAX_WATCHERS} watchers on this node")
        watcher = Watcher(
            key or b"\0", range_end, start_revision or self._revision + 1, prev_kv=prev_kv, no_put=no_put,
            no_delete=no_delete, outbox_events=outbox_events, outbox_bytes=outbox_bytes, share=self._outboxes,
            on_ready=on_ready,
        )  # fmt: skip
        if start_revision and start_revision < self._store.floor:
            watcher.canceled, watcher.compact_revision = True, self._store.floor
            return watcher
        if watcher.cursor > self._store.revision:
            self._join(watcher)
        else:
            self._behind.add(watcher)
            self._on_lag()
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher and what waits for it. Idempotent."""
        watcher.on_room = None
        watcher.discard()
        self._drop(watcher)

    def rebase(self, store: Store) -> None:
        """The state was replaced by a newer one: everyone goes on from its cursor, out of the new history (S26)."""
        # Who falls back goes on behind `_revision`: what an older store published up to there would be passed over.
        invariant(store.revision >= self._revision, "a state that watches were told of is replaced by an older one")
        self._all_fall_back(self._revision + 1)
        self._store = store
        self._revision = store.revision

    def close(self) -> None:
        """The shard leaves this node: every watch is canceled, with nothing compacted to blame. None is taken any more:
        nobody would feed it."""
        self._closed = True
        for watcher in [*self._behind, *self._stuck, *self._live]:
            self.remove(watcher)
            watcher.cancel(0)

    # --- the live feed

    def publish(self, applied: Applied) -> None:
        """Give what an apply call published to those in step."""
        if applied.missing:
            probe("watchers sent to history")
            self._all_fall_back(self._revision + 1)
        elif self._live.members:
            self._feed(applied.events)
        self._revision = max(self._revision, applied.revision)

    def _feed(self, events: Sequence[Change]) -> None:
        deliveries = 0
        for revision, its in groupby(events, _revision):
            changes = list(its)
            count = len(changes)
            large = count > 1 and (count > FEED * LARGE or count * self._live.ranges > MAX_DELIVERIES)
            if large or deliveries >= MAX_LIVE:
                probe("more published than is told at once")
                self._all_fall_back(revision)
                return
            told = self._live.told(revision, before_the_revision(changes))
            deliveries += len(told)
            for watcher, batch in told:
                if not watcher.deliver(batch):
                    probe("watcher fell behind")
                    self._fall_back(watcher, revision)

    # --- the walk over history

    def catch_up(self, budget: int = 1024) -> bool:
        """One stretch of about `budget` changes of history, for all that lag and have room; True if it should go on.

        The stretches go through history from its beginning to its end, again and again, from one to the next that
        somebody waits for. If each began with who is furthest behind, a client that goes on making watches of old
        revisions would keep all others from being told anything.
        """
        behind = self._with_room()
        if not behind:
            return False
        start = min((position for watcher in behind if (position := watcher.position) >= self._swept), default=None)
        if start is None:
            probe("sweep of history begun anew")
            start = min(watcher.position for watcher in behind)
        previous = any(watcher.prev_kv for watcher in behind)
        revision, sub = start
        most = max(1, MAX_DELIVERIES // (1 + self._behind.ranges))
        changes = self._store.changes(
            revision - 1, sub=sub, limit_rows=min(budget, most), previous=previous, cut=min(LARGE, most)
        )
        last = changes[-1].record if changes else None
        through = (last.main if last is not None else self._store.revision) + 1, 0
        if last is not None and changes.cut:
            probe("large revision told in parts")
            through = last.main, last.sub + 1
        deliveries = 0
        for revision, of_revision in groupby(changes, _revision):
            told = self._behind.told(revision, of_revision, start, more=changes.cut)
            self._deliver(told, revision, through[1])
            deliveries += len(told)
            if deliveries >= MAX_DELIVERIES and not changes.cut:
                probe("a stretch of history had many takers")
                through = revision + 1, 0
                break
        return self._passed(through, [watcher for watcher in behind if watcher.position >= start])

    def _deliver(self, told: Iterable[tuple[Watcher, EventBatch]], revision: int, sub: int) -> None:
        """Give out what history has at `revision`, or has there below `sub`."""
        for watcher, batch in told:
            if not watcher.deliver(batch, sub):
                watcher.reach((revision, 0))
                self._stick(watcher)

    def _passed(self, through: tuple[int, int], watchers: Iterable[Watcher]) -> bool:
        """History was walked up to `through`, for these; whether anybody is behind still."""
        self._swept = through
        passed = [watcher for watcher in watchers if watcher in self._behind]
        for watcher in passed:
            watcher.reach(through)
        self._settle(passed)
        return len(self._behind) > 0

    def _with_room(self) -> list[Watcher]:
        """Those behind that can be fed, once those are gone that can't, or need not."""
        floor = self._store.floor
        for watcher in list(self._behind):
            if watcher.cursor < floor and not watcher.full:
                probe("watch compacted")
                self._behind.discard(watcher)
                watcher.cancel(floor)
        self._settle(self._behind)
        return list(self._behind)

    # --- who is where

    def _settle(self, watchers: Iterable[Watcher]) -> None:
        """Let those of these, which are behind, join the live feed that want no published revision any more; others
        wait, if they have no room."""
        newest = self._store.revision
        joining: list[Watcher] = []
        for watcher in list(watchers):
            if watcher.cursor > newest:
                joining.append(watcher)
            elif watcher.full:
                self._stick(watcher)
        if len(joining) == len(self._behind) and not len(self._live):
            self._live, self._behind = self._behind, self._live
        else:
            for watcher in joining:
                self._behind.discard(watcher)
                self._live.add(watcher)
        for watcher in joining:
            watcher.lagging = False

    def _join(self, watcher: Watcher) -> None:
        watcher.lagging = False
        self._live.add(watcher)

    def _stick(self, watcher: Watcher) -> None:
        self._behind.discard(watcher)
        self._stuck[watcher] = None
        watcher.on_room = self._unstick

    def _unstick(self, watcher: Watcher) -> None:
        watcher.on_room = None
        del self._stuck[watcher]
        self._behind.add(watcher)
        self._on_lag()

    def _fall_back(self, watcher: Watcher, revision: int) -> None:
        """Out of the live feed, to be fed from `revision`."""
        watcher.reach((revision, 0))
        watcher.lagging = True
        self._live.discard(watcher)
        if watcher.full:
            self._stick(watcher)
        else:
            self._behind.add(watcher)
            self._on_lag()

    def _all_fall_back(self, revision: int) -> None:
        falling = list(self._live)
        if len(falling) > len(self._behind):
            # One by one, ten thousands of ranges take seconds to be put from one index into the other.
            self._live, self._behind = self._behind, self._live
        for watcher in list(self._live):
            self._live.discard(watcher)
            self._behind.add(watcher)
        for watcher in falling:
            watcher.reach((revision, 0))
            watcher.lagging = True
            if watcher.full:
                self._stick(watcher)
        if falling:
            self._on_lag()

    def _drop(self, watcher: Watcher) -> None:
        if watcher in self._stuck:
            del self._stuck[watcher]
        elif not self._behind.discard(watcher):
            self._live.discard(watcher)


def _revision(change: Change) -> int:
    return change.record.main

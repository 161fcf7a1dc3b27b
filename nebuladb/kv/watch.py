"""Watches of one shard: a live feed for those that keep up, one shared walk over history for those that don't.

Pure and synchronous. The caller calls `publish` after every apply in the same turn, and `catch_up` when a watch was
made, when a consumer drained an outbox and while it returns True.

The promises (etcd 45): ordered, each event once, none left out, a revision whole, resumable from any revision that
isn't compacted. They rest on `Watcher.cursor` alone: the feed and the walk both skip what is below it and move it up
with what they deliver, so it doesn't matter in which order they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import InvalidArgument, TooManyRequests
from nebuladb.kv.change import Applied, Change
from nebuladb.kv.check import TO_THE_LAST
from nebuladb.kv.store import Store
from nebuladb.kv.watcher import OUTBOX_BYTES, OUTBOX_EVENTS, Watcher
from nebuladb.storage.share import Share

MAX_WATCHERS: Final = 10_000
"""Of one shard on one node."""


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
        self._lagging: dict[Watcher, None] = {}
        self._by_key: dict[bytes, dict[Watcher, None]] = {}
        """In step with the live feed, those of one key; the others are in `_ranges`. Dicts as ordered sets."""
        self._ranges: dict[Watcher, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def lagging(self) -> bool:
        """Whether any watcher is to be fed from history."""
        return bool(self._lagging)

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
        call back into the hub. Raises `InvalidArgument` for an empty range and `TooManyRequests`.
        """
        if range_end and range_end != TO_THE_LAST and range_end <= key:
            raise InvalidArgument("watcher range is empty")
        if self._count >= MAX_WATCHERS:
            raise TooManyRequests(f"the shard has {MAX_WATCHERS} watchers on this node")
        watcher = Watcher(
            key or b"\0", range_end, start_revision or self._revision + 1, prev_kv=prev_kv, no_put=no_put,
            no_delete=no_delete, outbox_events=outbox_events, outbox_bytes=outbox_bytes, share=self._outboxes,
            on_ready=on_ready,
        )  # fmt: skip
        if start_revision and start_revision < self._store.floor:
            watcher.canceled, watcher.compact_revision = True, self._store.floor
            return watcher
        self._count += 1
        self._lagging[watcher] = None
        if not self._join(watcher):
            self._on_lag()
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher and what waits for it. Idempotent."""
        watcher.discard()
        if self._drop(watcher):
            self._count -= 1

    def rebase(self, store: Store) -> None:
        """The state was replaced by a newer one: everyone goes on from its cursor, out of the new history (S26)."""
        for watcher in self._synced():
            self._fall_back(watcher)
        self._store = store
        self._revision = max(self._revision, store.revision)

    def close(self) -> None:
        """The shard leaves this node: every watch is canceled, with nothing compacted to blame."""
        for watcher in [*self._lagging, *self._synced()]:
            self.remove(watcher)
            watcher.cancel(0)

    # --- the live feed

    def publish(self, applied: Applied) -> None:
        """Give what an apply call published to those in step."""
        if applied.missing:
            probe("watchers sent to history")
            for watcher in self._synced():
                self._fall_back(watcher)
        elif self._by_key or self._ranges:
            for revision, changes in groupby(applied.events, _revision):
                self._feed(revision, changes)
        self._revision = max(self._revision, applied.revision)

    def _feed(self, revision: int, changes: Iterable[Change]) -> None:
        wanted: dict[Watcher, list[Change]] = {}
        for change in changes:
            for watcher in self._by_key.get(change.key, ()):
                if revision >= watcher.cursor and watcher.wants(change):
                    wanted.setdefault(watcher, []).append(change)
            for watcher in self._ranges:
                if revision >= watcher.cursor and watcher.wants(change):
                    wanted.setdefault(watcher, []).append(change)
        for watcher, its in wanted.items():
            if not watcher.deliver(revision, its):
                probe("watcher fell behind")
                self._fall_back(watcher, revision)

    # --- the walk over history

    def catch_up(self, budget: int = 1024) -> bool:
        """One stretch of about `budget` changes of history, for all that lag and have room; True if it should go on.

        The stretch begins where the one furthest behind is; those further ahead are passed over until it reaches them.
        """
        waiting = [watcher for watcher in self._lagging if not watcher.full]
        floor, published = self._store.floor, self._store.revision
        behind = []
        for watcher in waiting:
            if watcher.cursor < floor:
                probe("watch compacted")
                self._drop(watcher)
                self._count -= 1
                watcher.cancel(floor)
            elif not self._join(watcher):
                behind.append(watcher)
        if not behind:
            return False
        start = min(watcher.cursor for watcher in behind)
        previous = any(watcher.prev_kv for watcher in behind)
        changes = self._store.changes(start - 1, limit_rows=budget, previous=previous)
        through = changes[-1].revision if changes else published
        open_ones = dict.fromkeys(behind)
        for revision, group in groupby(changes, _revision):
            of_revision = list(group)
            for watcher in list(open_ones):
                its = [c for c in of_revision if watcher.wants(c)] if watcher.cursor <= revision else []
                if its and not watcher.deliver(revision, its):
                    watcher.cursor = revision  # everything below it was delivered or isn't wanted
                    del open_ones[watcher]
        for watcher in open_ones:
            watcher.cursor = max(watcher.cursor, through + 1)
            self._join(watcher)
        return any(not watcher.full for watcher in self._lagging)

    # --- who is where

    def _join(self, watcher: Watcher) -> bool:
        """Put a lagging watcher into the live feed if no published revision is left that it might want."""
        if watcher.cursor <= self._store.revision:
            return False
        del self._lagging[watcher]
        watcher.lagging = False
        if watcher.end:
            self._ranges[watcher] = None
        else:
            self._by_key.setdefault(watcher.key, {})[watcher] = None
        return True

    def _fall_back(self, watcher: Watcher, revision: int = 0) -> None:
        """Out of the live feed, to be fed from `revision`, or from what comes after the feed's last."""
        watcher.cursor = max(watcher.cursor, revision or self._revision + 1)
        self._drop(watcher)
        watcher.lagging = True
        self._lagging[watcher] = None
        self._on_lag()

    def _drop(self, watcher: Watcher) -> bool:
        if watcher in self._lagging:
            del self._lagging[watcher]
            return True
        if watcher in self._ranges:
            del self._ranges[watcher]
            return True
        same_key = self._by_key.get(watcher.key)
        if watcher.end or same_key is None or watcher not in same_key:
            return False
        del same_key[watcher]
        if not same_key:
            del self._by_key[watcher.key]
        return True

    def _synced(self) -> Iterator[Watcher]:
        yield from list(self._ranges)
        for watchers in list(self._by_key.values()):
            yield from list(watchers)


def _revision(change: Change) -> int:
    return change.record.main

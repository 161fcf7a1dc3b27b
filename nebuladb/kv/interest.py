"""Watchers, to be found by the keys they watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nebuladb.kv.change import Change
from nebuladb.kv.span_index import SpanIndex
from nebuladb.kv.watcher import EventBatch, Watcher, event_batch


class Interest:
    """A set of watchers. What a change costs is what its watchers cost, however many others there are."""

    __slots__ = ("_keys", "_members", "_spans")

    def __init__(self) -> None:
        self._members: dict[Watcher, None] = {}
        self._keys: dict[bytes, dict[Watcher, None]] = {}
        """Those of one key each. Dicts as ordered sets."""
        self._spans: SpanIndex[Watcher] = SpanIndex()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(self._members)

    def __contains__(self, watcher: Watcher) -> bool:
        return watcher in self._members

    def add(self, watcher: Watcher) -> None:
        """One that isn't here yet."""
        self._members[watcher] = None
        if watcher.end:
            self._spans.add(watcher.key, watcher.end, watcher)
        else:
            self._keys.setdefault(watcher.key, {})[watcher] = None

    def discard(self, watcher: Watcher) -> bool:
        """Whether it was here."""
        if watcher not in self._members:
            return False
        del self._members[watcher]
        if watcher.end:
            self._spans.discard(watcher.key, watcher.end, watcher)
            return True
        same_key = self._keys[watcher.key]
        del same_key[watcher]
        if not same_key:
            del self._keys[watcher.key]
        return True

    def told(self, revision: int, changes: Iterable[Change]) -> list[tuple[Watcher, EventBatch]]:
        """Who wants which of a revision's changes. Those who want the same get the same batch."""
        wanted: dict[Watcher, list[Change]] = {}
        for change in before_the_revision(changes):
            for watcher in self._keys.get(change.key, ()):
                if revision >= watcher.cursor and watcher.wants(change):
                    wanted.setdefault(watcher, []).append(change)
            if self._spans:
                for watcher in self._spans.holding(change.key):
                    if revision >= watcher.cursor and watcher.wants(change):
                        wanted.setdefault(watcher, []).append(change)
        batches: dict[tuple[bool, tuple[int, ...]], EventBatch] = {}
        told: list[tuple[Watcher, EventBatch]] = []
        for watcher, its in wanted.items():
            kind = watcher.prev_kv, tuple(change.record.sub for change in its)
            batch = batches.get(kind)
            if batch is None:
                batch = batches[kind] = event_batch(revision, its, previous=watcher.prev_kv)
            told.append((watcher, batch))
        return told


def before_the_revision(changes: Iterable[Change]) -> list[Change]:
    """A revision's changes, each with what its key was before the revision, though that changed it twice (etcd 38).

    A put that makes a key has nothing before it, even where the revision deleted the key first.
    """
    found = list(changes)
    if len(found) > 1:
        first: dict[bytes, Change] = {}
        for at, change in enumerate(found):
            earlier = first.setdefault(change.key, change)
            if earlier is not change and change.record.version != 1:
                found[at] = change._replace(previous=earlier.previous)
    return found

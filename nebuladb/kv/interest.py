"""Watchers, to be found by the keys they watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nebuladb.kv.change import Change
from nebuladb.kv.rows import Record
from nebuladb.kv.span_index import SpanIndex
from nebuladb.kv.watcher import EventBatch, Watcher, told_as

BEGINNING: Final = (0, 0)
"""Of history."""


class _Alike:
    """Watchers that want the same: what they are told is put together once."""

    __slots__ = ("first", "members")

    def __init__(self, first: Watcher) -> None:
        self.first = first
        self.members: dict[Watcher, None] = {}


class Interest:
    """A set of watchers. What a change costs is what its watchers cost, however many others there are."""

    __slots__ = ("_alike", "_keys", "_spans", "members")

    def __init__(self) -> None:
        self.members: dict[Watcher, None] = {}
        """For who asks whether there are any; all else goes through the methods."""
        self._alike: dict[tuple[bytes, bytes, bool, bool, bool], _Alike] = {}
        self._keys: dict[bytes, dict[_Alike, None]] = {}
        """Those of one key each. Dicts as ordered sets."""
        self._spans: SpanIndex[_Alike] = SpanIndex()

    def __len__(self) -> int:
        return len(self.members)

    @property
    def ranges(self) -> int:
        """In how many that differ a change lies at worst, but for single keys."""
        return self._spans.depth

    def __iter__(self) -> Iterator[Watcher]:
        return iter(self.members)

    def __contains__(self, watcher: Watcher) -> bool:
        return watcher in self.members

    def add(self, watcher: Watcher) -> None:
        """One that isn't here yet."""
        self.members[watcher] = None
        alike = self._alike.get(watcher.kind)
        if alike is None:
            alike = self._alike[watcher.kind] = _Alike(watcher)
            if watcher.end:
                self._spans.add(watcher.key, watcher.end, alike)
            else:
                self._keys.setdefault(watcher.key, {})[alike] = None
        alike.members[watcher] = None

    def discard(self, watcher: Watcher) -> bool:
        """Whether it was here."""
        if watcher not in self.members:
            return False
        del self.members[watcher]
        alike = self._alike[watcher.kind]
        del alike.members[watcher]
        if alike.members:
            return True
        del self._alike[watcher.kind]
        if watcher.end:
            self._spans.discard(watcher.key, watcher.end, alike)
            return True
        same_key = self._keys[watcher.key]
        del same_key[alike]
        if not same_key:
            del self._keys[watcher.key]
        return True

    def told(
        self, revision: int, changes: Iterable[Change], since: tuple[int, int] = BEGINNING, *, more: bool = False
    ) -> list[tuple[Watcher, EventBatch]]:
        """Who wants which of a revision's changes, of those that were told all before `since`. Those who want the same
        get the same batch. `more`: the revision has more than these."""
        wanted: dict[_Alike, list[Change]] = {}
        self._sort(changes, wanted)
        batches: dict[tuple[bool, tuple[int, ...]], EventBatch] = {}

        def batch_of(mine: list[Change], previous: bool) -> EventBatch:
            kind = previous, tuple(change.record.sub for change in mine)
            batch = batches.get(kind)
            if batch is None:
                batch = batches[kind] = EventBatch(revision, told_as(mine, previous=previous), more=more)
            return batch

        told: list[tuple[Watcher, EventBatch]] = []
        for alike, its in wanted.items():
            shared: EventBatch | None = None
            begin, end = (revision, its[0].record.sub), (revision + 1, 0)
            for watcher in alike.members:
                position = watcher.position
                if since <= position <= begin:
                    shared = shared or batch_of(its, alike.first.prev_kv)
                    told.append((watcher, shared))
                elif begin < position < end:  # a part of these it was told already
                    rest = [change for change in its if change.record.sub >= position[1]]
                    if rest:
                        told.append((watcher, batch_of(rest, alike.first.prev_kv)))
        return told

    def _sort(self, changes: Iterable[Change], wanted: dict[_Alike, list[Change]]) -> None:
        for change in changes:
            for alike in self._keys.get(change.key, ()):
                if alike.first.wants(change):
                    wanted.setdefault(alike, []).append(change)
            if self._spans:
                for alike in self._spans.holding(change.key):
                    if alike.first.wants(change):
                        wanted.setdefault(alike, []).append(change)


def before_the_revision(changes: Iterable[Change]) -> list[Change]:
    """A revision's changes, each with what its key was before the revision, though that changed it twice (etcd 38).

    A put that makes a key has nothing before it, even where the revision deleted the key first. What is read from
    history is so already (`walk`).
    """
    found = list(changes)
    if len(found) < 2:
        return found
    first: dict[bytes, Record | None] = {}
    for at, change in enumerate(found):
        if change.key not in first:
            first[change.key] = change.previous
        elif change.record.version != 1:
            found[at] = change._replace(previous=first[change.key])
    return found

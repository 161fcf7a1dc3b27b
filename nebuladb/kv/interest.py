"""Watchers, to be found by the keys they watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from nebuladb.kv.change import Change
from nebuladb.kv.rows import Record
from nebuladb.kv.span_index import SpanIndex
from nebuladb.kv.watcher import EVENT_OVERHEAD, Event, EventBatch, Watcher, size_of, told_as


class _Alike:
    """Watchers that want the same: what they are told is put together once."""

    __slots__ = ("first", "members")

    def __init__(self, first: Watcher) -> None:
        self.first = first
        self.members: dict[Watcher, None] = {}


class Piece(NamedTuple):
    """Events of a large revision, as those who want the same of this piece of it are told them."""

    events: tuple[Event, ...]
    size: int


class Large:
    """A revision too large to be read in one go, as far as it is gathered."""

    __slots__ = ("content", "first", "known", "previous", "revision", "start", "sub", "wanted")

    def __init__(self, start: int, revision: int, previous: bool, known: set[_Alike]) -> None:
        self.start = start
        self.revision = revision
        self.previous = previous
        self.known = known
        self.sub = 0
        self.wanted: dict[_Alike, list[Piece]] = {}
        self.content: dict[_Alike, int] = {}
        """Bytes of keys and values of that."""
        self.first: dict[bytes, Record | None] = {}
        """What its keys were before it, as far as somebody is told that: the values would else be all in memory."""


class Interest:
    """A set of watchers. What a change costs is what its watchers cost, however many others there are."""

    __slots__ = ("_alike", "_keys", "_members", "_spans")

    def __init__(self) -> None:
        self._members: dict[Watcher, None] = {}
        self._alike: dict[tuple[bytes, bytes, bool, bool, bool, int], _Alike] = {}
        self._keys: dict[bytes, dict[_Alike, None]] = {}
        """Those of one key each. Dicts as ordered sets."""
        self._spans: SpanIndex[_Alike] = SpanIndex()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(self._members)

    def __contains__(self, watcher: Watcher) -> bool:
        return watcher in self._members

    def add(self, watcher: Watcher) -> None:
        """One that isn't here yet."""
        self._members[watcher] = None
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
        if watcher not in self._members:
            return False
        del self._members[watcher]
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

    def told(self, revision: int, changes: Iterable[Change], since: int = 0) -> list[tuple[Watcher, EventBatch]]:
        """Who wants which of a revision's changes, of those that were told all before `since`. Those who want the same
        get the same batch."""
        wanted: dict[_Alike, list[Change]] = {}
        self._sort(before_the_revision(changes), wanted)
        return self._batches(revision, wanted, since)

    def _sort(self, changes: Iterable[Change], wanted: dict[_Alike, list[Change]]) -> None:
        for change in changes:
            for alike in self._keys.get(change.key, ()):
                if alike.first.wants(change):
                    wanted.setdefault(alike, []).append(change)
            if self._spans:
                for alike in self._spans.holding(change.key):
                    if alike.first.wants(change):
                        wanted.setdefault(alike, []).append(change)

    def large(self, start: int, revision: int, previous: bool) -> Large:
        """Begin to gather the changes of a revision piece by piece; `start`: there is none before it from there on."""
        return Large(start, revision, previous, set(self._alike.values()))

    def gather(self, large: Large, changes: Sequence[Change]) -> list[Watcher]:
        """The next piece, whose events are made now: of all at once a turn would be as long as the revision is large.
        Those that have come meanwhile and want something else are not told of the revision.

        Returns those for which it has turned out to be too large; nothing is held for them any more.
        """
        found: dict[_Alike, list[Change]] = {}
        pieces: dict[tuple[bool, tuple[int, ...]], Piece] = {}
        self._sort(before_the_revision(changes, large.first) if large.previous else changes, found)
        for alike, its in found.items():
            if alike in large.known:
                previous = alike.first.prev_kv
                kind = _kind(its, previous)
                piece = pieces.get(kind)
                if piece is None:
                    events = told_as(its, previous=previous)
                    piece = pieces[kind] = Piece(events, size_of(events))
                large.wanted.setdefault(alike, []).append(piece)
                content = piece.size - EVENT_OVERHEAD * len(piece.events)
                large.content[alike] = large.content.get(alike, 0) + content
        large.sub = changes[-1].record.sub + 1
        beyond = [alike for alike in found if 0 < alike.first.most < large.content.get(alike, 0)]
        for alike in beyond:
            del large.wanted[alike], large.content[alike]
            large.known.discard(alike)
        if large.previous:
            for key in [*large.first] if beyond else {change.key for change in changes}:
                if not self._remembered(large, key):
                    del large.first[key]
            large.previous = not beyond or any(alike.first.prev_kv for alike in large.known)
        return [w for alike in beyond for w in alike.members if large.start <= w.cursor <= large.revision]

    def _remembered(self, large: Large, key: bytes) -> bool:
        """Whether somebody is told what the key was before."""
        watching = chain(self._keys.get(key, ()), self._spans.holding(key))
        return any(alike.first.prev_kv and alike in large.known for alike in watching)

    def gathered(self, large: Large) -> tuple[list[tuple[Watcher, EventBatch]], list[Watcher]]:
        """The revision is whole: who is told what of it, and who has come past it."""
        takers = [w for alike in large.known if self._alike.get(alike.first.kind) is alike for w in alike.members]
        past = [watcher for watcher in takers if large.start <= watcher.cursor <= large.revision]
        # Who was given the same pieces is told the same.
        batches: dict[tuple[int, ...], EventBatch] = {}
        told: list[tuple[Watcher, EventBatch]] = []
        for alike, pieces in large.wanted.items():
            ready = [watcher for watcher in alike.members if large.revision >= watcher.cursor >= large.start]
            if not ready:
                continue
            kind = tuple(map(id, pieces))
            batch = batches.get(kind)
            if batch is None:
                events = tuple(chain.from_iterable(piece.events for piece in pieces))
                size = sum(piece.size for piece in pieces)
                batch = batches[kind] = EventBatch(large.revision, events, size)
            told += [(watcher, batch) for watcher in ready]
        return told, past

    def _batches(
        self, revision: int, wanted: dict[_Alike, list[Change]], since: int
    ) -> list[tuple[Watcher, EventBatch]]:
        batches: dict[tuple[bool, tuple[int, ...]], EventBatch] = {}
        told: list[tuple[Watcher, EventBatch]] = []
        for alike, its in wanted.items():
            takers = [watcher for watcher in alike.members if revision >= watcher.cursor >= since]
            if not takers:
                continue
            previous = alike.first.prev_kv
            kind = _kind(its, previous)
            batch = batches.get(kind)
            if batch is None:
                batch = batches[kind] = EventBatch(revision, told_as(its, previous=previous))
            told += [(watcher, batch) for watcher in takers]
        return told


def _kind(changes: Iterable[Change], previous: bool) -> tuple[bool, tuple[int, ...]]:
    """Which of a revision's changes, and told how."""
    return previous, tuple(change.record.sub for change in changes)


def before_the_revision(changes: Iterable[Change], first: dict[bytes, Record | None] | None = None) -> list[Change]:
    """A revision's changes, each with what its key was before the revision, though that changed it twice (etcd 38).

    A put that makes a key has nothing before it, even where the revision deleted the key first. `first`: what the keys
    of the revision's earlier pieces were, to which those of this one are added.
    """
    found = list(changes)
    if first is None:
        if len(found) < 2:
            return found
        first = {}
    for at, change in enumerate(found):
        if change.key not in first:
            first[change.key] = change.previous
        elif change.record.version != 1:
            found[at] = change._replace(previous=first[change.key])
    return found

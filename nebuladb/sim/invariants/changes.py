"""What was committed, revision by revision, as the first replica that published it has it: the truth for watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nebuladb.errors import Compacted
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import key_value
from nebuladb.kv.store import Store
from nebuladb.kv.watcher import EventBatch
from nebuladb.sim.invariants.past import Contents, Past
from nebuladb.sim.violation import require


class Event(NamedTuple):
    """A change, as far as every watch tells it."""

    kv: KeyValue
    deleted: bool


class Asked(NamedTuple):
    """What a watch asked for: the keys of [`low`, `high`), and how it wants to be told of them."""

    low: bytes
    high: bytes
    prev_kv: bool = False
    no_put: bool = False
    no_delete: bool = False

    def wanted(self, events: Iterable[Event]) -> tuple[Event, ...]:
        """Those of a revision that it must be told."""
        return tuple(
            event
            for event in events
            if self.low <= event.kv.key < self.high and not (self.no_delete if event.deleted else self.no_put)
        )


class _Group:
    """`revisions` ascend and have no gap above `floor`, but for those that changed nothing a watch can see."""

    def __init__(self, revision: int) -> None:
        self.revisions: list[int] = []
        self.events: dict[int, tuple[Event, ...]] = {}
        self.highest = self.floor = revision
        self.past = Past()


class Changes:
    """Of all groups. A replica that applied something is asked for what nobody had published before."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}

    def published(self, group: int, store: Store) -> list[int]:
        """`store` has a revision now; each replica reads its own history, so what differs later is seen by hashes.
        Returns the revisions among the new ones that changed nothing."""
        known = self._groups.get(group)
        if known is None:
            known = self._groups[group] = _Group(1)
        if store.revision <= known.highest:
            return []
        after = known.highest
        try:
            changes = store.changes(after, limit_rows=1 << 30, limit_bytes=1 << 60)
        except Compacted:
            known.floor = after = store.floor - 1
            whole = store.scan(
                b"\0", revision=store.floor, limit=1 << 30, max_bytes=1 << 60, max_rows=1 << 30
            )  # fmt: skip
            known.past.restart(store.floor, whole.kvs)
            changes = store.changes(after, limit_rows=1 << 30, limit_bytes=1 << 60)
        for change in changes:
            revision, record = change.record.main, change.record
            if revision not in known.events:
                known.revisions.append(revision)
                known.events[revision] = ()
            if revision > known.past.since:
                known.past.changed(change)
            known.events[revision] += (Event(key_value(change.key, record), not record.version),)
        known.highest = store.revision
        return [revision for revision in range(after + 1, store.revision + 1) if revision not in known.events]

    def highest(self, group: int) -> int:
        """The newest revision that any replica has published."""
        known = self._groups.get(group)
        return known.highest if known else 1

    def contents(self, group: int, revision: int, low: bytes, high: bytes) -> Contents | None:
        """What [`low`, `high`) held at `revision`, with all that is said of a key; None: it isn't known any more."""
        require(revision <= self.highest(group), f"group {group}: nobody has published revision {revision} yet")
        known = self._groups.get(group)
        return known.past.at(revision, low, high) if known else {}

    def read(self, group: int, store: Store, key: bytes, where: str) -> KeyValue | None:
        """What a node's `store` says of `key`, which must be what it was at the revision that the answer names."""
        kv, revision = store.get(key), store.revision
        known = self._groups.get(group)
        if known is not None and known.past.since <= revision <= known.highest:
            was = known.past.of(revision, key)
            require(kv == was, f"group {group}, {where}: at revision {revision} it reads {kv} of {key!r}, it was {was}")
        return kv

    def told(self, group: int, batch: EventBatch, after: int, asked: Asked, floor: int, where: str) -> None:
        """A watch that had come to `after` is told `batch`, by a node whose history begins at `floor`."""
        known = self._groups.get(group)
        where = f"group {group}, {where}"
        require(batch.revision > after, f"{where}: revision {batch.revision} is told after {after}")
        require(
            known is not None and batch.revision <= known.highest,
            f"{where}: revision {batch.revision} is told before it was published",
        )
        assert known is not None
        self._nothing_between(known, after, batch.revision, asked, where)
        events = tuple(Event(event.kv, event.deleted) for event in batch.events)
        wanted = asked.wanted(known.events.get(batch.revision, ()))
        if batch.revision > known.floor:
            require(events == wanted, f"{where}: at revision {batch.revision} it is told {events}, it was {wanted}")
        before = known.past.at(batch.revision - 1, asked.low, asked.high)
        if before is None:
            return
        for event in batch.events:
            was = before.get(event.kv.key) if asked.prev_kv else None
            gone = event.previous is None and batch.revision <= floor
            require(
                gone or event.previous == was,
                f"{where}: at revision {batch.revision} it is told {event}, before that it was {was}",
            )

    def complete(self, group: int, after: int, through: int, asked: Asked, where: str) -> None:
        """A watch that had come to `after` says that it was told everything up to `through`."""
        known = self._groups.get(group)
        if known is not None:
            self._nothing_between(known, after, through + 1, asked, f"group {group}, {where}")

    def were(self, group: int, revision: int, content: Mapping[bytes, tuple[int, int, bytes]], where: str) -> None:
        """Somebody says that the whole `content` of the group at `revision` was this: key → (mod revision, version,
        value). What was last changed at or below the floor isn't known here."""
        known = self._groups.get(group) or _Group(1)
        require(revision <= known.highest, f"{where}: nobody has published that yet")
        wanted: dict[bytes, tuple[int, int, bytes]] = {}
        for one in known.revisions:
            if one > revision:
                break
            for kv, deleted in known.events[one]:
                wanted.pop(kv.key, None)
                if not deleted:
                    wanted[kv.key] = one, kv.version, kv.value
        found = {key: state for key, state in content.items() if state[0] > known.floor}
        wanted = {key: state for key, state in wanted.items() if state[0] > known.floor}
        require(found == wanted, f"{where}: it is {found}, it was {wanted}")

    def acknowledged(self, group: int, revisions: Iterable[int], *, dropped: bool) -> None:
        """Clients were told that writes of theirs stand at these revisions. The replica that told so may have been
        removed in the same turn, if the group was `dropped`, and published nothing."""
        known = self._groups.get(group)
        for revision in revisions:
            gone = dropped and revision > self.highest(group)
            require(
                gone or (known is not None and (revision in known.events or revision <= known.floor)),
                f"group {group}: a write was acknowledged at revision {revision}, where no replica published a change",
            )

    def _nothing_between(self, known: _Group, after: int, before: int, asked: Asked, where: str) -> None:
        for revision in range(max(after, known.floor) + 1, before):
            missed = asked.wanted(known.events.get(revision, ()))
            require(not missed, f"{where}: it was never told of revision {revision}: {missed}")

"""What a key was before a revision that changed it more than once (etcd 38)."""

from __future__ import annotations

import pytest

from nebuladb.kv.change import Change
from nebuladb.kv.interest import before_the_revision
from nebuladb.kv.rows import Record
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Watcher
from tests.unit.kv.helpers import Log, fresh, put


def record(main: int, sub: int, version: int, value: bytes) -> Record:
    return Record(main, sub, version and main, version, 0, 0, 0, False, 0, 0, 0, value)  # noqa: FBT003


def test_a_key_that_one_revision_changes_twice_was_what_it_was_before_it() -> None:
    old, other = record(3, 0, 1, b"old"), record(4, 0, 1, b"other")
    put, gone = record(9, 0, 2, b"new"), record(9, 2, 0, b"")
    changes = [Change(b"a", put, old), Change(b"b", record(9, 1, 2, b"x"), other), Change(b"a", gone, put)]
    assert [change.previous for change in before_the_revision(iter(changes))] == [old, other, old]
    created = [Change(b"a", record(9, 0, 1, b"new"), None), Change(b"a", gone, record(9, 0, 1, b"new"))]
    assert [change.previous for change in before_the_revision(created)] == [None, None]
    again = record(9, 3, 1, b"again")
    assert before_the_revision([*changes, Change(b"a", again, None)])[-1].previous is None
    assert [change.record for change in before_the_revision(changes)] == [change.record for change in changes]


def test_who_wants_the_same_costs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and also where some have come further already."""
    asked: list[Watcher] = []
    wants = Watcher.wants

    def counted(watcher: Watcher, change: Change) -> bool:
        asked.append(watcher)
        return wants(watcher, change)

    monkeypatch.setattr(Watcher, "wants", counted)
    store, _ = fresh()
    hub = WatchHub(store)
    alike = [hub.watch(b"k", b"l") for _ in range(50)]
    ahead = hub.watch(b"k", b"l", start_revision=100)
    others = [hub.watch(b"k", b"l", prev_kv=True), hub.watch(b"k", b"l", no_put=True), hub.watch(b"k")]
    hub.publish(store.apply([Log().work(*(put(b"k%d" % number) for number in range(10)))]))
    assert len(asked) == 3 * 10
    told = [watcher.take() for watcher in alike]
    assert all(one is other for batches in told for one, other in zip(batches, told[0], strict=True))
    assert sum(len(batch.events) for batch in told[0]) == 10
    assert len(others[0].take()) == len(told[0])
    assert [watcher.take() for watcher in (ahead, *others[1:])] == [[], [], []]

"""Watches that lag share one walk over history: nobody keeps the others from it, and a stretch has a bound in bytes, as
an outbox has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from nebuladb.kv import watch
from nebuladb.kv.change import Change
from nebuladb.kv.interest import Interest
from nebuladb.kv.watch import WatchHub
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.share import Share
from tests.unit.kv.helpers import Log, fresh, put, run, taken, txn
from tests.unit.kv.test_watch import feed


def test_watches_of_old_revisions_without_end_do_not_starve_the_others() -> None:
    store, _ = fresh()
    log = Log()
    for number in range(100):
        run(store, log, put(b"k", b"%d" % number))
    hub = WatchHub(store)
    lagging = hub.watch(b"k", start_revision=50)
    told: list[int] = []
    for _ in range(50):
        hub.watch(b"k", start_revision=2)  # as its client, which comes again and again
        hub.catch_up(4)
        told += [batch.revision for batch in lagging.take()]
    assert told == list(range(50, 102))


def test_a_stretch_of_history_counts_what_was_before() -> None:
    store, _ = fresh()
    log = Log()
    large = b"x" * 100_000
    for number in range(40):
        run(store, log, put(b"k%d" % number, large))
    for number in range(40):
        run(store, log, put(b"k%d" % number))
    changes = store.changes(41, previous=True)
    assert sum(len(change.previous.value) for change in changes if change.previous) <= (1 << 20) + len(large)


def test_a_full_watch_that_was_drained_is_fed_without_any_write() -> None:
    """Who drives the hub looks at it when told to: else a watch of a shard that rests stood still after its first
    outbox of history."""
    store, _ = fresh()
    log = Log()
    for number in range(10):
        run(store, log, put(b"k", b"%d" % number))
    told: list[None] = []
    hub = WatchHub(store, on_lag=lambda: told.append(None))
    watcher = hub.watch(b"k", start_revision=2, outbox_events=4)
    while hub.catch_up(100):
        pass
    assert watcher.full
    told.clear()
    assert [batch.revision for batch in watcher.take()] == [2, 3, 4, 5]
    assert told


def test_an_outbox_takes_no_more_bytes_than_its_own_bound_however_much_the_node_has() -> None:
    """One slow client had all that the watches of a node may hold, and the others were refused theirs."""
    store, _ = fresh()
    log = Log()
    for _ in range(3):
        run(store, log, put(b"k", b"x" * 600))
    hub = WatchHub(store, Share(1 << 20))
    watcher = hub.watch(b"k", start_revision=2, outbox_bytes=1_000)
    told = []
    for _ in range(3):
        while hub.catch_up(100):
            pass
        told.append([batch.revision for batch in watcher.take()])
    assert told == [[2], [3], [4]]


def test_a_turn_has_a_bound_however_many_ranges_a_change_lies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 ranges and a deletion of 800 keys kept the loop for six seconds, and a transaction of 128 puts for two."""
    monkeypatch.setattr(watch, "MAX_DELIVERIES", 100)
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    watchers = [hub.watch(b"a%02d" % number, b"z") for number in range(50)]
    most: list[int] = []
    told = Interest.told

    def counted(interest: Interest, revision: int, changes: Iterable[Change], *args: Any, **fields: Any) -> Any:
        found = list(changes)
        most.append(len(found))
        return told(interest, revision, found, *args, **fields)

    monkeypatch.setattr(Interest, "told", counted)
    request = kv_pb2.TxnRequest(
        success=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"k%02d" % number)) for number in range(20)]
    )
    feed(store, hub, log, txn(request))
    assert most == [], "it is told out of history"
    batches = taken(hub, *watchers)
    assert max(most) <= 2
    assert [[len(batch.events) for batch in its] for its in batches] == [[20]] * 50
    feed(store, hub, log, put(b"k"))
    assert not hub.lagging
    assert all(len(watcher.take()) == 1 for watcher in watchers)


def test_what_one_apply_publishes_is_told_at_once_as_far_as_it_is_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_LIVE", 30)
    store, _ = fresh()
    hub = WatchHub(store)
    watchers = [hub.watch(b"k", b"l") for _ in range(10)]
    hub.publish(store.apply([Log().work(*(put(b"k%d" % number) for number in range(9)))]))
    assert [watcher.count for watcher in watchers] == [3] * 10
    assert all(watcher.lagging for watcher in watchers)
    assert [[batch.revision for batch in its] for its in taken(hub, *watchers)] == [list(range(2, 11))] * 10
    assert not hub.lagging

"""Revisions too large to be read in one go, and hubs whose shard has left."""

from __future__ import annotations

from typing import Any

import pytest

from nebuladb.errors import Unavailable
from nebuladb.kv import watcher as module
from nebuladb.kv.limits import Limits
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Event, EventBatch
from tests.unit.kv.helpers import Log, delete, fresh, put
from tests.unit.kv.test_watch import feed


def test_a_closed_hub_takes_no_watch_that_nobody_would_feed() -> None:
    store, _ = fresh()
    hub = WatchHub(store)
    hub.close()
    with pytest.raises(Unavailable):
        hub.watch(b"a")


def test_a_huge_revision_is_read_in_pieces_and_told_whole() -> None:
    store, _ = fresh(Limits(slice_rows=64))
    hub, log = WatchHub(store), Log()
    keys = [b"k%05d" % i for i in range(5000)]
    feed(store, hub, log, *[put(key) for key in keys[:2500]])
    feed(store, hub, log, *[put(key) for key in keys[2500:]])
    one, all_ = hub.watch(keys[17]), hub.watch(b"k", b"l", prev_kv=True)
    feed(store, hub, log, delete(b"k", b"l"))
    feed(store, hub, log, put(b"k"))
    stretches = 0
    read = store.changes
    most = 0

    def counted(*args: Any, **fields: Any) -> Any:
        nonlocal most
        found = read(*args, **fields)
        most = max(most, len(found))
        return found

    store.changes = counted  # type: ignore[method-assign]
    late = None
    while hub.catch_up(256):
        stretches += 1
        if stretches == 2:
            late = hub.watch(keys[4999], start_revision=store.revision - 1)
            again = hub.watch(keys[17], start_revision=2)
    assert late is not None
    assert most <= 1024
    told = all_.take()
    while hub.catch_up(256):
        pass
    told += all_.take()
    assert [len(batch.events) for batch in told] == [5000, 1]
    assert all(event.previous is not None for event in told[0].events)
    assert [len(batch.events) for batch in one.take()] == [1]
    assert [len(batch.events) for batch in late.take()] == [1]
    assert [batch.revision for batch in again.take()] == [2 + 17, store.revision - 1]


def test_the_events_of_a_huge_revision_are_made_in_pieces_once_for_all_who_want_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A turn is no longer than a piece; all at once they kept the loop for half a second, and the leader changed."""
    store, _ = fresh(Limits(slice_rows=64))
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, *[put(b"k%05d" % i) for i in range(5000)])
    wide = [hub.watch(b"k", b"l"), hub.watch(b"a", b"z"), hub.watch(b"k", b"l", no_put=True)]
    one, half = hub.watch(b"k00017"), hub.watch(b"k", b"k02500")
    past = hub.watch(b"k", b"l", prev_kv=True)
    made = 0

    def counted(*args: Any) -> Event:
        nonlocal made
        made += 1
        return Event(*args)

    monkeypatch.setattr(module, "Event", counted)
    feed(store, hub, log, delete(b"k", b"l"))
    most = total = 0
    on = True
    while on:
        assert not any(watcher.waiting for watcher in (*wide, one, half, past)), "none is told a part"
        made = 0
        on = hub.catch_up(256)
        most, total = max(most, made), total + made
    assert most <= 3 * 1024 + 1
    assert total == 5000 + 5000 + 1 + half.count - 2 * 1024, "the first pieces of the half are the others', too"
    batches = [watcher.take() for watcher in wide]
    assert batches[0][0] is batches[1][0] is batches[2][0]
    assert [event.kv.key for event in batches[0][0].events] == [b"k%05d" % i for i in range(5000)]
    assert batches[0][0].size == EventBatch(1, batches[0][0].events).size
    assert [event.kv.key for event in half.take()[0].events] == [b"k%05d" % i for i in range(2500)]
    assert [event.kv.key for event in one.take()[0].events] == [b"k00017"]
    assert [event.previous is not None for event in past.take()[0].events] == [True] * 5000

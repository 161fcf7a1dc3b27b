"""Revisions too large to be read in one go, and hubs whose shard has left."""

from __future__ import annotations

from typing import Any

import pytest

from nebuladb.errors import Unavailable
from nebuladb.kv.limits import Limits
from nebuladb.kv.watch import WatchHub
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
    assert most <= 1025
    told = all_.take()
    while hub.catch_up(256):
        pass
    told += all_.take()
    assert [len(batch.events) for batch in told] == [5000, 1]
    assert all(event.previous is not None for event in told[0].events)
    assert [len(batch.events) for batch in one.take()] == [1]
    assert [len(batch.events) for batch in late.take()] == [1]
    assert [batch.revision for batch in again.take()] == [2 + 17, store.revision - 1]

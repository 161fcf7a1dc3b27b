"""A pinned scan reads one revision to its end, whatever is written, compacted and deleted meanwhile (S24)."""

from __future__ import annotations

import pytest

from nebuladb.errors import Compacted, TooManyRequests, Unavailable
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.limits import Limits
from tests.unit.kv.helpers import Log, compact, delete, finish, fresh, put, run


def test_a_pinned_scan_survives_compaction_and_half_done_deletions() -> None:
    store, _ = fresh(Limits(slice_rows=3))
    log = Log()
    keys = [b"k%d" % i for i in range(6)]
    run(store, log, *[put(key, b"old") for key in keys])
    work = log.work(delete(b"k", b"l"))
    assert store.apply([work]).partial
    pin, revision = store.pin(), store.revision
    found: list[KeyValue] = []
    start = b"k"
    while start:
        page = pin.scan(start, b"l", limit=2)
        found += page.kvs
        start = page.cursor
        while store.index < work.index:
            store.apply([work])
        run(store, log, put(keys[-1], b"new"), compact(store.revision + 1))
        finish(store)
    assert [(kv.key, kv.value) for kv in found] == [(key, b"old") for key in keys]
    with pytest.raises(Compacted):
        store.scan(b"k", b"l", revision=revision)
    pin.close()
    pin.close()


def test_pins_are_bounded_and_expire() -> None:
    store, _ = fresh(Limits(pins=1, snapshot_age=2))
    log = Log()
    pin = store.pin()
    with pytest.raises(TooManyRequests):
        store.pin()
    for _ in range(3):
        run(store, log, put(b"a"))
    store.background()
    with pytest.raises(Unavailable):
        pin.scan(b"a")
    other = store.pin()
    store.close()
    assert other.closed

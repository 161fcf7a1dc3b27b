"""A pinned scan reads one revision to its end, whatever is written, compacted and deleted meanwhile (S24)."""

from __future__ import annotations

import pytest

from nebuladb.errors import Compacted, FutureRevision, TooManyRequests, Unavailable
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
    run(store, log, compact(store.revision))
    finish(store)
    with pytest.raises(Unavailable):
        pin.scan(b"a")
    other = store.pin()
    store.close()
    assert other.closed


def test_only_what_a_pin_shows_is_kept_and_only_while_it_is_open() -> None:
    store, engine = fresh()
    log = Log()
    for _ in range(5):
        run(store, log, put(b"a"))
    first = store.pin(store.revision - 2)
    second = store.pin()
    run(store, log, delete(b"a"), put(b"b"), compact(store.revision + 2))
    counts = []
    for pin in (None, first, second):
        if pin is not None:
            pin.close()
        finish(store)
        assert store.busy is not second.closed
        counts.append(len(list(engine.scan(b"", b"\xff" * 32))))
    # Two versions that the first held; then its last one with the tombstone in both orders of rows.
    assert [counts[0] - counts[1], counts[1] - counts[2]] == [2, 3]


def test_a_pin_names_a_readable_revision() -> None:
    store, _ = fresh()
    log = Log()
    for _ in range(3):
        run(store, log, put(b"a"))
    run(store, log, compact(3))
    with pytest.raises(Compacted):
        store.pin(2)
    with pytest.raises(FutureRevision):
        store.pin(5)
    assert store.pin(3).revision == 3


def test_a_pin_is_closed_when_what_it_shows_has_no_way_back() -> None:
    """A key that it shows was deleted, that was compacted, and the key made anew: the scan left it out."""
    store, _ = fresh()
    log = Log()
    run(store, log, put(b"a"), put(b"b"))
    pin = store.pin()
    run(store, log, delete(b"b"), put(b"c"))
    run(store, log, compact(store.revision))
    assert [kv.key for kv in pin.scan(b"\0").kvs] == [b"a", b"b"]
    later = store.pin()
    run(store, log, put(b"b", b"new"))
    with pytest.raises(Unavailable):
        pin.scan(b"\0")
    assert [kv.key for kv in later.scan(b"\0").kvs] == [b"a", b"c"], "which never showed it"

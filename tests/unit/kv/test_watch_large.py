"""Revisions too large to be told at once, and hubs whose shard has left."""

from __future__ import annotations

from typing import Any

import pytest

from nebuladb.errors import Unavailable
from nebuladb.kv import watch
from nebuladb.kv import watcher as module
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.kv.watch import LARGE, WatchHub
from nebuladb.kv.watcher import OUTBOX_EVENTS, Event
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.kv.helpers import Log, Told, delete, fresh, put, taken, txn
from tests.unit.kv.test_watch import feed

KEYS = [b"k%05d" % number for number in range(5000)]


def filled() -> tuple[Store, WatchHub, Log]:
    store, _ = fresh(Limits(slice_rows=64))
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, *map(put, KEYS[:2500]))
    feed(store, hub, log, *map(put, KEYS[2500:]))
    return store, hub, log


def test_a_closed_hub_takes_no_watch_that_nobody_would_feed() -> None:
    store, _ = fresh()
    hub = WatchHub(store)
    hub.close()
    with pytest.raises(Unavailable):
        hub.watch(b"a")


def test_a_huge_revision_is_told_in_parts_as_they_are_taken() -> None:
    store, hub, log = filled()
    one, all_ = hub.watch(KEYS[17]), hub.watch(b"k", b"l", prev_kv=True)
    feed(store, hub, log, delete(b"k", b"l"))
    feed(store, hub, log, put(b"k"))
    told = Told()
    assert len(KEYS) > OUTBOX_EVENTS
    while all_.lagging:
        while hub.catch_up(256):
            pass
        assert 0 < all_.count <= OUTBOX_EVENTS, "nothing more is read before that is taken"
        batches = all_.take()
        assert all(len(batch.events) <= LARGE for batch in batches)
        told.add(batches)
    assert [len(batch.events) for batch in told.batches] == [5000, 1]
    assert [event.kv.key for event in told.batches[0].events] == KEYS
    assert all(event.previous is not None for event in told.batches[0].events)
    assert [(len(batch.events), batch.more) for batch in one.take()] == [(1, True), (0, False)]
    assert not hub.lagging


def test_who_comes_amid_a_huge_revision_is_told_it_from_its_beginning() -> None:
    store, hub, log = filled()
    first = hub.watch(b"k", b"l")
    feed(store, hub, log, delete(b"k", b"l"))
    told = Told()
    assert hub.catch_up(256)
    told.add(first.take())
    late = hub.watch(KEYS[4999], start_revision=store.revision)
    again = hub.watch(KEYS[17], start_revision=2)
    second = hub.watch(b"k", b"l", start_revision=store.revision)
    others = taken(hub, first, late, again, second)
    assert [event.kv.key for batch in (*told.parts, *others[0]) for event in batch.events] == KEYS
    assert [[(batch.revision, len(batch.events)) for batch in its] for its in others[1:]] == [
        [(store.revision, 1)],
        [(2 + 17, 1), (store.revision, 1)],
        [(store.revision, 5000)],
    ]


def test_who_wants_a_huge_revision_again_and_again_keeps_nobody_from_its_end() -> None:
    store, hub, log = filled()
    watcher = hub.watch(b"k", b"l")
    feed(store, hub, log, delete(b"k", b"l"))
    told = Told()
    for _ in range(2 * len(KEYS) // LARGE):
        hub.watch(b"k", b"l", start_revision=store.revision)
        hub.catch_up(256)
        told.add(watcher.take())
    assert [len(batch.events) for batch in told.batches] == [5000]


def test_the_events_of_a_huge_revision_are_made_once_for_all_who_want_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, hub, log = filled()
    wide = [hub.watch(b"k", b"l"), hub.watch(b"a", b"z"), hub.watch(b"k", b"l", no_put=True)]
    half, past = hub.watch(b"k", KEYS[2500]), hub.watch(b"k", b"l", prev_kv=True)
    made = 0

    def counted(*args: Any) -> Event:
        nonlocal made
        made += 1
        return Event(*args)

    monkeypatch.setattr(module, "Event", counted)
    feed(store, hub, log, delete(b"k", b"l"))
    told = [Told() for _ in (*wide, half, past)]
    on = True
    while on or hub.lagging:
        made = 0
        on = hub.catch_up(256)
        assert made <= 3 * LARGE
        batches = [watcher.take() for watcher in (*wide, half, past)]
        assert all(one is two is three for one, two, three in zip(*batches[:3], strict=True))
        for its, watcher_told in zip(batches, told, strict=True):
            watcher_told.add(its)
    assert [[len(batch.events) for batch in its.batches] for its in told] == [[5000]] * 3 + [[2500], [5000]]
    assert [event.previous is not None for event in told[4].batches[0].events] == [True] * 5000


def test_a_transaction_of_many_changes_is_told_in_parts() -> None:
    store, hub, log = filled()
    watcher, small = hub.watch(b"k", b"l", prev_kv=True), hub.watch(b"z")
    request = kv_pb2.TxnRequest()
    request.success.add().delete.CopyFrom(kv_pb2.TxnDelete(key=b"k", range_end=b"l"))
    request.success.add().put.CopyFrom(kv_pb2.TxnPut(key=b"z"))
    feed(store, hub, log, txn(request))
    assert watcher.lagging
    [told], [other] = taken(hub, watcher, small)
    assert [event.kv.key for event in told.events] == KEYS
    assert [event.kv.key for event in other.events] == [b"z"]


def test_what_a_key_was_is_known_though_the_revision_is_read_from_its_midst(monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that makes the key anew has nothing before it; the deletion behind it has."""
    monkeypatch.setattr(watch, "LARGE", 1)
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, put(b"k", b"old"))
    deletion = kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=b"k", range_end=b"\0"))
    feed(
        store, hub, log,
        txn(kv_pb2.TxnRequest(success=[deletion, kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"k")), deletion])),
    )  # fmt: skip
    watcher = hub.watch(b"k", start_revision=store.revision, prev_kv=True, outbox_events=1)
    hub.catch_up(256)
    told = Told()
    told.add(watcher.take())
    monkeypatch.setattr(watch, "LARGE", 256)
    [rest] = taken(hub, watcher)
    events = [event for batch in (*told.parts, *rest) for event in batch.events]
    assert [event.previous.value if event.previous else None for event in events] == [b"old", None, b"old"]


def test_watches_at_different_paces_share_what_is_read() -> None:
    store, hub, log = filled()
    quick, slow = hub.watch(b"k", b"l"), hub.watch(b"k", b"l")
    feed(store, hub, log, delete(b"k", b"l"))
    read = 0
    changes = store.changes

    def counted(*args: Any, **fields: Any) -> Any:
        nonlocal read
        found = changes(*args, **fields)
        read += len(found)
        return found

    store.changes = counted  # type: ignore[method-assign]
    told = [Told(), Told()]
    for turn in range(100):
        hub.catch_up(256)
        told[0].add(quick.take())
        if turn % 5 == 0:
            told[1].add(slow.take())
    assert [[len(batch.events) for batch in its.batches] for its in told] == [[5000]] * 2
    assert read == 5000


OLD, OTHER = (b"a", b"old"), (b"b", b"other")


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("delete", [(*OLD, True), (*OTHER, True), (b"a", None, False), (b"b", None, False)]),
        ("put", [(*OLD, False), (*OTHER, False), (*OLD, True), (*OTHER, True)]),
    ],
)
def test_what_a_key_was_is_told_of_each_of_its_changes_though_they_are_in_two_parts(
    monkeypatch: pytest.MonkeyPatch, first: str, expected: list[tuple[bytes, bytes | None, bool]]
) -> None:
    """etcd 38: what it was before the revision."""
    monkeypatch.setattr(watch, "LARGE", 2)
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, put(*OLD), put(*OTHER))
    watcher = hub.watch(b"\0", b"\0", prev_kv=True)
    deletion = kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=b"a", range_end=b"\0"))
    puts = [kv_pb2.Operation(put=kv_pb2.TxnPut(key=key, value=b"new")) for key in (b"a", b"b")]
    feed(store, hub, log, txn(kv_pb2.TxnRequest(success=[deletion, *puts] if first == "delete" else [*puts, deletion])))
    [[told]] = taken(hub, watcher)
    assert [
        (event.kv.key, event.previous.value if event.previous else None, event.deleted) for event in told.events
    ] == expected

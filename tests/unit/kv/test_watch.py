"""Watchers against the log of changes: nothing skipped, nothing twice, nothing out of order, revisions whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.env import probe
from nebuladb.errors import InvalidArgument, TooManyRequests
from nebuladb.kv import watch
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.change import Applied
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Watcher
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.share import Share
from tests.unit.kv.helpers import GENERATION, GROUP, NODE, Log, Told, compact, delete, finish, fresh, put, txn
from tests.unit.kv.model import Model, ModelEvent, inside
from tests.unit.kv.programs import ENDS, KEYS, build, program

pytestmark = pytest.mark.usefixtures("small_bounds")

watch_spec = st.tuples(
    st.sampled_from(KEYS),
    st.sampled_from(ENDS),
    st.integers(0, 12),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([1, 2, 5, 1000]),
    st.sampled_from([1, 300, 1 << 20]),
    st.integers(0, 9),
)
"""Key, end, start; prev_kv, no_put, no_delete; bounds of the outbox; before which entry it is made."""


class Consumer:
    """A watcher and what it has been told."""

    def __init__(self, hub: WatchHub, spec: Any) -> None:
        self.key, self.end, start, (self.prev_kv, self.no_put, self.no_delete), events, size, _ = spec
        self.woken = 0
        self.start = start or hub.revision + 1
        self.watcher = hub.watch(
            self.key, self.end, start, prev_kv=self.prev_kv, no_put=self.no_put, no_delete=self.no_delete,
            outbox_events=events, outbox_bytes=size, on_ready=self._wake,
        )  # fmt: skip
        self.told = Told()

    def _wake(self) -> None:
        self.woken += 1

    def take(self) -> None:
        batches = self.watcher.take()
        assert not batches or self.woken > 0
        assert all(len(batch.events) <= watch.FEED * watch.LARGE for batch in batches)
        self.told.add(batches)

    def check(self, events: list[ModelEvent], *, whole: bool) -> None:
        """What was told is what happened from the start on; all of it, or of a canceled watch a first part."""
        wanted = [
            event
            for event in events
            if event.revision >= self.start
            and inside(event.key, self.key, self.end)
            and not (self.no_put if event.kv else self.no_delete)
        ]
        batches = self.told.batches
        told = [(batch.revision, event) for batch in batches for event in batch.events]
        assert whole or self.watcher.canceled
        if not whole:
            revisions = [batch.revision for batch in batches]
            wanted = [event for event in wanted if revisions and event.revision <= revisions[-1]]
        assert len(told) == len(wanted)
        assert len({batch.revision for batch in batches}) == len(batches)
        assert not (whole and self.told.parts)
        before: dict[tuple[int, bytes], KeyValue | None] = {}
        for each in events:
            before.setdefault((each.revision, each.key), each.previous)
        for (revision, event), expected in zip(told, wanted, strict=True):
            assert (revision, event.kv.key, event.deleted) == (expected.revision, expected.key, expected.kv is None)
            assert event.kv.mod_revision == revision
            assert expected.kv in (None, event.kv)
            # Read at mod - 1, hence perhaps compacted when it was read; never anything else (etcd 38).
            assert event.previous in (None, before[revision, expected.key])
            assert self.prev_kv or event.previous is None


def valid(spec: Any) -> bool:
    return spec[1] in (b"", b"\0") or spec[1] > spec[0]


@given(
    program,
    st.lists(watch_spec.filter(valid), min_size=1, max_size=6),
    st.sampled_from([1, 3, 10, 4096]),
    st.sampled_from([1, 4, 20_000]),
    st.sampled_from([1, 2, 4, 1024]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_watchers_are_told_the_log(
    entries: list[Any], specs: list[Any], rows: int, deliveries: int, large: int, random: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "MAX_DELIVERIES", deliveries)
        patch.setattr(watch, "LARGE", large)
        watchers_are_told_the_log(entries, specs, rows, random)


def watchers_are_told_the_log(entries: list[Any], specs: list[Any], rows: int, random: Any) -> None:
    model = Model()
    works, _ = build(entries, model)
    store, _ = fresh(Limits(slice_rows=rows))
    hub = WatchHub(store)
    consumers: list[Consumer] = []
    for place, work in enumerate(works):
        consumers += [Consumer(hub, spec) for spec in specs if min(spec[-1], len(works) - 1) == place]
        while store.index < work.index:
            hub.publish(store.apply([work]))
            for _ in range(random.randrange(3)):
                hub.catch_up(random.randrange(1, 4))
            for consumer in consumers:
                if random.randrange(3) == 0:
                    consumer.take()
            store.background(random.randrange(4))
    for _ in range(1000):
        for consumer in consumers:
            consumer.take()
        if not hub.catch_up(2) and not any(consumer.watcher.lagging for consumer in consumers if _alive(consumer)):
            break
    for consumer in consumers:
        consumer.take()
        assert consumer.watcher.canceled or not consumer.watcher.lagging
        consumer.check(model.events, whole=not consumer.watcher.canceled)
        if consumer.watcher.canceled:
            assert consumer.watcher.compact_revision > 0


def _alive(consumer: Consumer) -> bool:
    return not consumer.watcher.canceled


def feed(store: Store, hub: WatchHub, log: Log, *commands: Any) -> list[Applied]:
    work = log.work(*commands)
    calls = []
    while store.index < work.index:
        calls.append(store.apply([work]))
        hub.publish(calls[-1])
    return calls


def revisions(watcher: Watcher) -> list[int]:
    return [batch.revision for batch in watcher.take()]


def test_a_sliced_deletion_is_one_batch_read_from_history() -> None:
    store, _ = fresh(Limits(slice_rows=4))
    hub, log = WatchHub(store), Log()
    keys = [b"k%02d" % i for i in range(20)]
    feed(store, hub, log, *[put(key) for key in keys])
    watcher = hub.watch(b"\0", b"\0")
    calls = feed(store, hub, log, delete(b"k", b"l"))
    assert len(calls) > 3
    assert [call.missing for call in calls] == [False] * (len(calls) - 1) + [True]
    assert watcher.take() == []
    while hub.catch_up(4):
        pass
    [batch] = watcher.take()
    assert [event.kv.key for event in batch.events] == keys
    assert not watcher.lagging
    feed(store, hub, log, put(b"x"))
    assert revisions(watcher) == [store.revision]


def test_a_half_done_deletion_is_not_seen() -> None:
    store, _ = fresh(Limits(slice_rows=3))
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, *[put(b"k%02d" % i) for i in range(9)])
    work = log.work(delete(b"k", b"l"))
    assert store.apply([work]).partial
    watcher = hub.watch(b"\0", b"\0", 2)
    while hub.catch_up():
        pass
    assert revisions(watcher) == list(range(2, 11))
    assert store.range(b"\0", b"\0").count == 9
    assert (store.revision, store.key_count) == (10, 9)
    assert store.get(b"k00") is not None


def test_a_compacted_start_is_canceled_with_the_compact_revision() -> None:
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, put(b"a"), put(b"a"), delete(b"a"), compact(4))
    finish(store)
    for start in (1, 3, -1):
        watcher = hub.watch(b"a", start_revision=start)
        assert (watcher.canceled, watcher.compact_revision) == (True, 4)
    at_floor = hub.watch(b"a", start_revision=4)
    hub.catch_up()
    assert [event.deleted for batch in at_floor.take() for event in batch.events] == [True]
    assert len(hub) == 1


def test_a_laggard_whose_next_revision_is_compacted_is_canceled_after_what_it_holds() -> None:
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    watcher = hub.watch(b"a", outbox_events=2)
    for _ in range(6):
        feed(store, hub, log, put(b"a"))
    feed(store, hub, log, compact(6))
    hub.catch_up()
    assert not watcher.canceled  # what it holds is still its consumer's
    assert revisions(watcher) == [2, 3]
    assert not hub.catch_up()
    assert (watcher.canceled, watcher.compact_revision, len(hub)) == (True, 6, 0)


def test_a_laggard_is_as_far_as_what_it_waits_for_not_as_what_it_got() -> None:
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    two = kv_pb2.TxnRequest(success=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=key)) for key in (b"a", b"b")])
    feed(store, hub, log, put(b"a"), put(b"x"), put(b"x"), txn(two))
    watcher = hub.watch(b"a", b"c", 2, outbox_events=2)
    assert not hub.catch_up()  # nothing more fits until it is drained, so there is nothing to go on with
    feed(store, hub, log, compact(5))
    assert revisions(watcher) == [2]
    hub.catch_up()
    assert not watcher.canceled  # what was compacted, it did not want
    assert revisions(watcher) == [5]


def test_a_future_start_tells_nothing_older() -> None:
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    watcher = hub.watch(b"a", start_revision=4)
    feed(store, hub, log, put(b"a"), put(b"a"), put(b"a"), put(b"a"))
    assert revisions(watcher) == [4, 5]


def test_after_a_snapshot_install_watchers_go_on_from_their_cursor() -> None:
    store, engine = fresh()
    hub, log = WatchHub(store), Log()
    watcher = hub.watch(b"a")
    feed(store, hub, log, put(b"a"))
    store.apply([log.work(put(b"a"), put(b"a"))])  # on another node, say; its snapshot is installed here
    hub.rebase(Store(engine, GROUP, GENERATION, NODE))
    while hub.catch_up():
        pass
    assert revisions(watcher) == [2, 3, 4]


def test_bounds_and_empty_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_WATCHERS", 1)
    store, _ = fresh()
    hub = WatchHub(store)
    with pytest.raises(InvalidArgument):
        hub.watch(b"b", b"a")
    watcher = hub.watch(b"a")
    with pytest.raises(TooManyRequests):
        hub.watch(b"b")
    hub.remove(watcher)
    hub.remove(watcher)
    assert len(hub) == 0
    assert hub.watch(b"", b"\0").key == b"\0"


def test_the_properties_reach_the_rare_paths() -> None:
    rare = "watcher fell behind", "watch compacted", "watchers sent to history", "a stretch of history had many takers"
    for name in rare:
        assert probe.hits[name] > 0, name


def test_outboxes_share_one_bound_and_what_has_no_room_comes_from_history() -> None:
    store, _ = fresh()
    share = Share(1_000)
    hub, log = WatchHub(store, share), Log()
    watchers = [hub.watch(b"\0", b"\0") for _ in range(3)]
    for number in range(20):
        feed(store, hub, log, put(b"k%d" % number, bytes(100)))
    assert share.used < share.limit + 3 * 300
    assert all(watcher.lagging and watcher.full for watcher in watchers)
    seen: list[list[int]] = [[] for _ in watchers]
    for _ in range(30):
        for mine, watcher in zip(seen, watchers, strict=True):
            mine += revisions(watcher)
        hub.catch_up(4)
    assert seen == [list(range(2, 22))] * 3
    feed(store, hub, log, put(b"last"))
    assert share.used > 0
    for watcher in watchers:
        hub.remove(watcher)
    assert share.used == 0


def test_who_wants_the_same_shares_it_and_who_wants_less_gets_less() -> None:
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    feed(store, hub, log, put(b"a"))
    plain = [hub.watch(b"a"), hub.watch(b"a"), hub.watch(b"a", b"b")]
    previous = hub.watch(b"a", prev_kv=True)
    feed(store, hub, log, put(b"a"))
    told = [watcher.take()[0] for watcher in plain]
    assert told[0] is told[1] is told[2]
    assert told[0].events[0].previous is None
    assert previous.take()[0].events[0].previous is not None
    two = kv_pb2.TxnRequest(success=[kv_pb2.Operation(put=kv_pb2.TxnPut(key=key)) for key in (b"a", b"aa", b"b")])
    feed(store, hub, log, txn(two))
    names = [[event.kv.key for event in watcher.take()[0].events] for watcher in plain]
    assert names == [[b"a"], [b"a"], [b"a", b"aa"]]


def test_watchers_without_room_cost_the_others_nothing() -> None:
    store, _ = fresh()
    hub, log = WatchHub(store), Log()
    slow = [hub.watch(b"a", outbox_events=1) for _ in range(5)]
    quick = hub.watch(b"a")
    for _ in range(3):
        feed(store, hub, log, put(b"a"))
    assert [watcher.lagging for watcher in slow] == [True] * 5
    assert not hub.lagging  # there is nothing to walk for, until somebody drains
    assert not hub.catch_up()
    assert revisions(quick) == [2, 3, 4]
    assert revisions(slow[0]) == [2]
    while hub.catch_up():
        pass
    assert revisions(slow[0]) == [3]
    hub.remove(slow[1])
    assert len(hub) == 5
    for watcher in slow[2:]:
        told: list[int] = []
        while watcher.lagging:
            told += revisions(watcher)
            hub.catch_up()
        assert told + revisions(watcher) == [2, 3, 4]

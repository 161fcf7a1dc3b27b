"""Watches that lag share one walk over history: nobody keeps the others from it, and a stretch has a bound in bytes."""

from __future__ import annotations

from nebuladb.kv.watch import WatchHub
from tests.unit.kv.helpers import Log, fresh, put, run


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

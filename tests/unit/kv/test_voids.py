"""What reads pass over at once, since others have passed it row by row, holds no key at their revision."""

from __future__ import annotations

from random import Random

import pytest

from nebuladb.kv import pin as module
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.kv.view import Page
from nebuladb.kv.voids import MAX_BYTES, MAX_VOIDS, MIN_ROWS, Voids
from tests.unit.kv.helpers import Log, compact, delete, finish, fresh, put, run

KEYS = [b"%02d" % number for number in range(24)]


def first(store: Store, revision: int = 0, limit: int = 1) -> Page:
    pin = store.pin(revision)
    page = pin.scan(b"q", b"r", limit=limit)
    pin.close()
    return page


def queue(length: int) -> tuple[Store, Log]:
    """Of which all but the last were taken."""
    store, _ = fresh()
    log = Log()
    keys = [b"q%04d" % number for number in range(length)]
    run(store, log, *(put(key, b"v") for key in keys))
    run(store, log, *(delete(key) for key in keys[:-1]))
    return store, log


def test_who_looks_for_the_first_key_of_a_queue_passes_what_was_taken_once() -> None:
    store, log = queue(1_000)
    before = store.revision
    assert first(store).examined >= 1_000
    found = first(store)
    assert [kv.key for kv in found.kvs] == [b"q0999"]
    assert found.examined == 1
    run(store, log, put(b"q0999"), put(b"q1000"), delete(b"q0999"))
    assert [kv.key for kv in first(store).kvs] == [b"q1000"]
    assert first(store).examined == 2
    assert [kv.key for kv in first(store, before - 1).kvs] == [b"q0998"], "what it was is read as before"
    run(store, log, put(b"q0500"))
    assert [kv.key for kv in first(store, limit=9).kvs] == [b"q0500", b"q1000"]
    assert [kv.key for kv in first(store, before, limit=9).kvs] == [b"q0999"]


def test_an_empty_queue_is_passed_to_its_end_and_what_comes_is_seen() -> None:
    store, log = queue(200)
    run(store, log, delete(b"q0199"))
    assert first(store).examined == 200
    assert first(store).examined == 0
    for number in range(200, 203):
        run(store, log, put(b"q%04d" % number))
        assert [kv.key for kv in first(store, limit=9).kvs] == [b"q%04d" % one for one in range(200, number + 1)]
        assert first(store).examined <= 2


def test_a_key_that_comes_and_goes_in_one_slice_was_there_between() -> None:
    store, log = queue(200)
    first(store)
    revision = store.revision
    run(store, log, put(b"q0100", b"w"), delete(b"q0100"))
    assert [kv.value for kv in first(store, revision + 1).kvs] == [b"w"]
    assert [kv.key for kv in first(store, revision + 2).kvs] == [b"q0199"]


def test_what_is_half_deleted_is_there_and_then_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    store, _ = fresh(Limits(slice_rows=2))
    log = Log()
    for number in range(6):
        run(store, log, put(b"q%d" % number))
    run(store, log, delete(b"q0"))
    work = log.work(put(b"q0"), delete(b"q1", b"q5"))
    assert store.apply([work]).partial
    assert [kv.key for kv in first(store, limit=9).kvs] == [b"q%d" % number for number in range(6)]
    while store.index < work.index:
        store.apply([work])
    assert [kv.key for kv in first(store, limit=9).kvs] == [b"q0", b"q5"]


def test_they_are_bounded() -> None:
    store, _ = fresh()
    voids = Voids(b"", store.revision)
    for number in range(2 * MAX_VOIDS):
        voids.revision = number + 1
        voids.found(b"%03d0" % number, b"%03d5" % number)
    assert len(voids._voids) == MAX_VOIDS
    assert voids.behind(b"0001", 99) == b"0001", "the first has gone"
    assert voids.behind(b"0201", 99) == b"0205"
    assert voids.behind(b"0205", 99) == b"0205"
    voids.found(b"0205", b"0300")
    assert voids.behind(b"0203", 99) == b"0305"
    assert voids.behind(b"0203", 31) == b"0203", "a read of before it was found"
    voids.found(b"8", b"9" * MAX_BYTES)
    assert voids.behind(b"8", 99) == b"8"
    assert MIN_ROWS > 1


@pytest.mark.parametrize("seed", range(60))
def test_reads_are_right_whatever_others_have_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    rng = Random(seed)
    store, _ = fresh(Limits(slice_rows=rng.choice((2, 4096))))
    log = Log()
    now: dict[bytes, bytes] = {}
    were: dict[int, dict[bytes, bytes]] = {store.revision: {}}
    for step in range(150):
        low, high = sorted((rng.choice(KEYS), rng.choice(KEYS)))
        match rng.randrange(8):
            case 0 | 1:
                run(store, log, put(low, b"%d" % step))
                now[low] = b"%d" % step
            case 2 | 3:
                run(store, log, delete(low))
                now.pop(low, None)
            case 4:
                run(store, log, delete(low, high))
                now = {key: value for key, value in now.items() if not low <= key < high}
            case 5 if rng.random() < 0.2:
                run(store, log, compact(store.revision - rng.randrange(3)))
                finish(store)
        were[store.revision] = dict(now)
        revision = rng.choice([one for one in (store.revision, store.revision - 3) if max(store.floor, 1) <= one])
        wanted = [(key, value) for key, value in sorted(were[revision].items()) if low <= key < high]
        limit, rows = rng.choice((0, 1, 3, 99)), rng.choice((1, 3, 99))
        pin, start, counted = store.pin(revision), low, 0
        found: list[tuple[bytes, bytes]] = []
        while start and low < high:
            page = pin.scan(start, high, limit=limit, max_rows=rows)
            found += [(kv.key, kv.value) for kv in page.kvs]
            start, counted = page.cursor, counted + page.counted
        pin.close()
        assert (counted, found) == (len(wanted), wanted if limit else [])

"""The hash of keys and history at a revision: equal wherever what can be read is equal, and nowhere else (etcd 55)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from nebuladb.errors import Compacted, Corruption, FutureRevision
from nebuladb.ids import Generation
from nebuladb.kv.command import Command
from nebuladb.kv.history_hash import HistoryHash
from nebuladb.kv.rows import Keys
from nebuladb.storage.engine import Batch, Engine
from tests.unit.kv.helpers import GENERATION, GROUP, Log, compact, delete, finish, fresh, grant, put, reopen, run

SECONDS = 10.0


def found(engine: Engine, revision: int = 0, budget: int = 1_000) -> int:
    work = HistoryHash(engine, GROUP, GENERATION, revision)
    try:
        while (hashed := work.step(budget)) is None:
            pass
        return hashed
    finally:
        work.close()


def populated() -> Engine:
    """Revisions 2 to 9: a key written, deleted and written again among others."""
    store, engine = fresh()
    log = Log()
    run(store, log, put(b"a", b"1"), put(b"b", b"1"), put(b"a", b"2"), delete(b"b"), put(b"c", b"1"))
    run(store, log, put(b"b", b"2"), delete(b"c"), put(b"a", b"3"))
    assert store.revision == 9
    return engine


def test_every_revision_has_a_hash_of_its_own_that_later_writes_leave_alone() -> None:
    store, engine = fresh()
    log = Log()
    commands = (put(b"a", b"1"), put(b"b", b"1"), put(b"a", b"2"), delete(b"b"), put(b"b", b"2"), delete(b"a"))
    seen = [found(engine)]
    for command in commands:
        run(store, log, command)
        seen.append(found(engine))
    assert len(set(seen)) == len(seen)
    assert [found(engine, revision) for revision in range(1, store.revision + 1)] == seen


def test_how_it_is_sliced_makes_no_difference() -> None:
    engine = populated()
    assert {found(engine, 7, budget) for budget in (1, 2, 3, 100)} == {found(engine, 7)}


def test_it_lets_go_of_the_engine_while_a_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller is gone amid a slice, which nobody can stop: the view must not stay, which keeps all that it sees."""
    engine = populated()
    view, closed = engine.snapshot(), Mock()
    reads, goes_on = Event(), Event()

    def scan(low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        for row in view.scan(low, high):
            reads.set()
            assert goes_on.wait(SECONDS)
            yield row

    monkeypatch.setattr(engine, "snapshot", lambda _: SimpleNamespace(get=view.get, scan=scan, close=closed))
    work = HistoryHash(engine, GROUP, GENERATION)
    with ThreadPoolExecutor(1) as pool:
        slice_ = pool.submit(work.step, 1)
        try:
            assert reads.wait(SECONDS)
            work.close()
            closed.assert_called_once()
        finally:
            goes_on.set()
        assert slice_.result(SECONDS) is None


@pytest.mark.parametrize("floor", range(2, 10))
def test_physical_deletion_makes_no_difference(floor: int) -> None:
    """One replica has deleted what is compacted, another hasn't begun; also where tombstones lie at the floor."""
    engines = [populated(), populated()]
    hashes = []
    for engine, deletes in zip(engines, (True, False), strict=True):
        store = reopen(engine)
        run(store, Log(store.index), compact(floor))
        if deletes:
            finish(store)
            assert not store.busy
        hashes.append([found(engine, revision) for revision in range(floor, store.revision + 1)])
    assert hashes[0] == hashes[1]


def test_the_floor_counts() -> None:
    """Two members with different compact revisions don't have the same history: the answer says the floor besides."""
    engine = populated()
    whole = found(engine)
    run(reopen(engine), Log(2), compact(5))
    assert found(engine) != whole


@pytest.mark.parametrize("other", [put(b"a", b"2"), put(b"b", b"1"), put(b"a", b"1", 5)], ids=["value", "key", "lease"])
def test_what_clients_read_counts(other: Command) -> None:
    engines = []
    for command in (put(b"a", b"1"), other):
        store, engine = fresh()
        run(store, Log(), grant(5), command)
        engines.append(engine)
    assert found(engines[0]) != found(engines[1])


def test_leases_and_the_log_do_not_count() -> None:
    engines = []
    for commands in ((put(b"a", b"1"),), (grant(5), delete(b"nothing"), put(b"a", b"1"))):
        store, engine = fresh()
        run(store, Log(), *commands)
        engines.append(engine)
    assert found(engines[0]) == found(engines[1])


def test_a_revision_that_cannot_be_read_is_refused() -> None:
    engine = populated()
    run(reopen(engine), Log(2), compact(5))
    with pytest.raises(Compacted):
        found(engine, 4)
    with pytest.raises(FutureRevision):
        found(engine, 10)
    with pytest.raises(Corruption, match="no state"):
        HistoryHash(engine, GROUP, Generation(9))
    assert found(engine, -1) == found(engine, 9) == found(engine)


def test_a_history_with_a_gap_is_no_hash() -> None:
    engine = populated()
    batch = Batch()
    batch.delete(Keys(GROUP, GENERATION).record_key(4, 0))
    engine.write(batch)
    with pytest.raises(Corruption, match=r"no row 4\.0"):
        found(engine)

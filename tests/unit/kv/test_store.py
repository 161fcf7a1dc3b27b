"""Examples of what a store does, one rule a test."""

from __future__ import annotations

import pytest

from nebuladb.errors import Compacted, Corruption, FutureRevision, Reason
from nebuladb.kv.answer import DeleteResult, KeyValue, PutResult
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import GENERATION, GROUP, NODE, Log, compact, delete, finish, fresh, put, reopen, run, txn


def test_an_empty_shard_is_at_revision_1_and_its_first_write_makes_2() -> None:
    store, _ = fresh()
    assert (store.revision, store.floor, store.epoch) == (1, 0, 1)
    [answer] = run(store, Log(), put(b"k", b"v"))
    assert (answer.revision, answer.result, store.revision) == (2, PutResult(), 2)
    assert store.get(b"k") == KeyValue(b"k", 2, 2, 1, 0, b"v")


def test_a_key_created_again_has_version_1_and_a_new_create_revision() -> None:
    store, _ = fresh()
    log = Log()
    run(store, log, put(b"k", b"1"), put(b"k", b"2"), delete(b"k"), put(b"k", b"3"))
    assert store.get(b"k") == KeyValue(b"k", 5, 5, 1, 0, b"3")
    assert store.get(b"k", 4) is None
    assert store.get(b"k", 3) == KeyValue(b"k", 2, 3, 2, 0, b"2")
    assert store.get(b"k", 2) == KeyValue(b"k", 2, 2, 1, 0, b"1")


def test_deleting_nothing_steps_no_revision() -> None:
    store, _ = fresh()
    assert [a.result for a in run(store, Log(), delete(b"a"), delete(b"a", b"z"))] == [DeleteResult(0)] * 2
    assert store.revision == 1


def test_reads_outside_the_readable_revisions_are_refused() -> None:
    store, _ = fresh()
    log = Log()
    run(store, log, put(b"k"), put(b"k"), put(b"k"))
    assert [a.reason for a in run(store, log, compact(3), compact(3), compact(5))] == [
        0,
        Reason.COMPACTED,
        Reason.FUTURE_REVISION,
    ]
    finish(store)
    with pytest.raises(Compacted) as refused:
        store.get(b"k", 2)
    assert refused.value.floor == 3
    with pytest.raises(FutureRevision):
        store.range(b"k", revision=5)
    assert store.get(b"k", 3) is not None


def test_what_was_written_is_there_after_opening_again() -> None:
    store, engine = fresh()
    log = Log()
    run(store, log, put(b"a", b"1"), put(b"b", b"2"), delete(b"a"))
    again = reopen(engine)
    assert (again.index, again.term, again.revision, again.configuration) == (1, 1, 4, b"c")
    assert again.range(b"\0", b"\0") == store.range(b"\0", b"\0")
    assert (again.key_count, again.size) == (1, 2)


def test_no_state_is_corruption_and_destroy_leaves_none() -> None:
    engine = MemoryEngine(wal=False)
    with pytest.raises(Corruption):
        Store(engine, GROUP, GENERATION, NODE)
    store, _ = fresh(engine=engine)
    run(store, Log(), put(b"a"))
    Store.destroy(engine, GROUP, GENERATION)
    assert list(engine.scan(b"", b"\xff" * 20)) == []


def test_a_revision_at_the_floor_stays_whole_though_it_changed_a_key_twice() -> None:
    """A watch may start there (etcd 36), and must not depend on how far this node's deletion got."""
    store, _ = fresh()
    log = Log()
    run(store, log, put(b"k", b"1"))
    last = kv_pb2.TxnRequest(
        success=[
            kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"k", value=b"2")),
            kv_pb2.Operation(delete=kv_pb2.TxnDelete(key=b"a", range_end=b"\0")),
        ]
    )
    run(store, log, txn(last))
    before = store.changes(store.revision - 1)
    assert [(change.key, change.deleted) for change in before] == [(b"k", False), (b"k", True)]
    run(store, log, compact(store.revision))
    finish(store)
    assert store.changes(store.revision - 1) == before
    run(store, log, put(b"other"), compact(store.revision + 1))
    finish(store)
    assert [change.key for change in store.changes(store.revision - 1)] == [b"other"]
    assert [row for row, _ in store._engine.scan(store._keys.record, store._keys.record + b"\xff" * 13)] == [
        store._keys.record_key(store.revision, 0)
    ]

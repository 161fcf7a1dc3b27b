"""Rows that are on the disk only: an apply or a read says which, and what it gives then is what a warm store gives."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.errors import NebulaError
from nebuladb.kv import check
from nebuladb.kv.answer import RangeResult, TxnResult
from nebuladb.kv.change import Applied
from nebuladb.kv.command import Work
from nebuladb.kv.limits import Limits
from nebuladb.kv.loans import Loans, Misses
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.engine import DELETE_RANGE, Batch
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import (
    Log,
    compact,
    delete,
    drain,
    finish,
    fresh,
    grant,
    put,
    reopen,
    revoke,
    run,
    state_hash,
    txn,
)
from tests.unit.kv.model import Model, Refused
from tests.unit.kv.programs import build, program, reading, with_hash

T = TypeVar("T")

ROUNDS = 10_000


class Cold:
    """A store whose engine has in memory only what chance leaves there, and somebody who fetches."""

    def __init__(self, bounds: Limits, random: Random, share: float) -> None:
        self.engine = MemoryEngine(wal=False)
        self.store, _ = fresh(bounds, self.engine)
        self.engine.chill(lambda _: random.random() < share)
        self.whole = True
        """Whether a fetch brings all that it was asked for."""
        self._random = random
        self._held: list[bytes] = []

    def fetch(self, rows: list[bytes], between: Callable[[], None] = lambda: None) -> None:
        assert rows
        self.store.borrow(rows)
        self._held += rows
        values = self.engine.get_many(rows if self.whole else rows[: self._random.randint(1, len(rows))])
        between()
        self.store.supply(rows, values)

    def release(self) -> None:
        self.store.give_back(self._held)
        self._held = []

    def apply(self, works: list[Work]) -> list[Applied]:
        calls: list[Applied] = []
        for _ in range(ROUNDS):
            if self.store.index >= works[-1].index:
                self.release()
                return calls
            calls.append(self.store.apply(works))
            if calls[-1].size:
                self.release()
            if calls[-1].wanted:
                # Deletion may take away what was just read; a loan must not bring it back.
                self.fetch(calls[-1].wanted, self.background if self._random.random() < 0.3 else lambda: None)
        raise AssertionError("apply does not come to an end")

    def background(self) -> None:
        """One stretch, if its rows are here."""
        try:
            self.store.background(3)
        except Misses:
            return

    def finish(self) -> None:
        self.patient(lambda: finish(self.store))

    def patient(self, read: Callable[[], T]) -> T:
        for _ in range(ROUNDS):
            try:
                found = read()
            except Misses as misses:
                self.fetch(list(misses.rows))
            else:
                self.release()
                return found
        raise AssertionError("a read does not come to an end")


@given(program, st.sampled_from([1, 2, 5, 4096]), st.sampled_from([0.1, 0.5, 1.0]), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_cold_store_gives_what_a_warm_one_gives(entries: list[Any], rows: int, share: float, random: Random) -> None:
    works, _ = build(entries, Model())
    works = with_hash(works)
    warm, _ = fresh()
    wanted = [pair for call in drain(warm, works) for pair in call.answers]
    finish(warm)
    cold = Cold(Limits(slice_rows=rows, cache_bytes=0), random, share)
    cold.whole = random.random() < 0.5
    calls = cold.apply(works)
    assert [pair for call in calls for pair in call.answers] == wanted
    cold.finish()
    assert cold.store.hash_at(works[-1].index) == warm.hash_at(works[-1].index)
    for revision in range(max(warm.floor, 1), warm.revision + 1):
        for key in (b"a", b"b\0", b"ca", b"none"):
            assert cold.patient(lambda: cold.store.get(key, revision)) == warm.get(key, revision)  # noqa: B023
    assert cold.store.borrowed == 0


def test_one_fetch_brings_the_rows_of_many_commands() -> None:
    cold = Cold(Limits(cache_bytes=0), Random(1), 1.0)
    log = Log()
    keys = [b"%04d" % number for number in range(300)]
    cold.apply([log.work(*map(put, keys))])
    cold.store = reopen(cold.engine, Limits(cache_bytes=0))
    cold.engine.chill(lambda row: row.endswith(tuple(keys)))
    work = log.work(*map(put, keys))
    first = cold.store.apply([work])
    assert (first.index, first.size, len(first.wanted)) == (1, 0, 128)
    cold.fetch(first.wanted)
    second = cold.store.apply([work])
    assert len(second.wanted) == 300 - 128, "small ones, so twice as many at once"
    cold.fetch(second.wanted)
    assert cold.store.apply([work]).index == 2


def test_one_fetch_brings_the_rows_of_transactions_within_transactions() -> None:
    """Their compares, and both branches, at any depth."""
    cold = Cold(Limits(cache_bytes=0), Random(1), 1.0)
    log = Log()
    keys = [b"compared", b"deleted", b"here", b"other", b"put", b"read"]
    cold.apply([log.work(grant(7), *map(put, keys))])
    cold.store = reopen(cold.engine, Limits(cache_bytes=0))
    lease = cold.store._keys.lease_key(7)
    cold.engine.chill(lambda row: row.endswith(tuple(keys)) or row == lease)
    operation = kv_pb2.Operation
    inner = kv_pb2.NestedTxn(
        compare=[kv_pb2.Compare(key=b"compared", result=kv_pb2.Compare.GREATER)],
        success=[operation(put=kv_pb2.TxnPut(key=b"put", lease=7)), operation(range=kv_pb2.RangeRequest(key=b"read"))],
        failure=[operation(delete=kv_pb2.TxnDelete(key=b"deleted"))],
    )
    middle = kv_pb2.NestedTxn(
        success=[operation(txn=inner)], failure=[operation(range=kv_pb2.RangeRequest(key=b"other"))]
    )
    works = [log.work(put(b"here")), log.work(txn(kv_pb2.TxnRequest(success=[operation(txn=middle)])))]
    first = cold.store.apply(works)
    assert {row for row in first.wanted if row != lease} == {cold.store._keys.current + key for key in keys}
    assert lease in first.wanted
    cold.fetch(first.wanted)
    calls = cold.apply(works)
    assert [call.wanted for call in calls if call.wanted] == []


def test_a_miss_in_the_middle_keeps_what_was_done() -> None:
    store, engine = fresh()
    assert isinstance(engine, MemoryEngine)
    log = Log()
    run(store, log, put(b"far"))
    store.close()
    store = reopen(engine, Limits(cache_bytes=0))
    engine.chill(lambda row: row.endswith(b"far"))
    work = log.work(put(b"near"), put(b"far"), put(b"other"))
    applied = store.apply([work])
    assert [request for request, _ in applied.answers] == [2]
    assert applied.partial
    assert store.get(b"near") is not None
    assert store.get(b"other") is None
    again = store.apply([work])
    assert (again.answers, again.size) == ([], 0)
    assert again.wanted == applied.wanted
    store.borrow(applied.wanted)
    store.supply(applied.wanted, engine.get_many(applied.wanted))
    assert [request for request, _ in store.apply([work]).answers] == [3, 4]
    far = store.get(b"far")
    assert far is not None
    assert far.version == 2


def test_a_record_that_leaves_the_memory_while_a_lease_is_revoked_is_waited_for() -> None:
    """Half of the revision was published: a watch was told of `a`, and never of `b`."""
    store, engine = fresh()
    assert isinstance(engine, MemoryEngine)
    log = Log()
    run(store, log, grant(7), put(b"a", lease=7), put(b"b", lease=7))
    store.close()
    store = reopen(engine, Limits(cache_bytes=0))
    looks: list[bytes] = []

    def cold(row: bytes) -> bool:
        looks.append(row)
        return row.endswith(b"b") and looks.count(row) == 1

    engine.chill(cold)
    work = log.work(revoke(7))
    first = store.apply([work])
    assert (first.size, first.events, len(first.wanted)) == (0, [], 1)
    assert [change.key for change in store.apply([work]).events] == [b"a", b"b"]


def test_a_loan_is_what_was_written_last() -> None:
    loans = Loans()
    loans.borrow([b"put", b"gone", b"range", b"same"])
    loans.borrow([b"same"])
    batch = Batch()
    batch.put(b"put", b"new")
    batch.delete(b"gone")
    batch.delete_range(b"r", b"s")
    batch.put(b"strange", b"x")
    loans.written(batch)
    loans.supply([b"put", b"gone", b"range", b"same"], [b"old", b"old", b"old", b"old"])
    assert loans.rows == {b"put": b"new", b"gone": None, b"range": None, b"same": b"old"}
    loans.give_back([b"put", b"gone", b"range", b"same"])
    assert loans.rows == {b"same": b"old"}
    loans.give_back([b"same", b"never"])
    loans.supply([b"same"], [b"late"])
    assert (len(loans), loans.rows) == (0, {})


def test_a_big_hash_and_a_big_deletion_ask_for_their_rows_first() -> None:
    cold = Cold(Limits(cache_bytes=0), Random(1), 1.0)
    log = Log()
    keys = [b"%03d" % number for number in range(50)]
    for _ in range(3):
        cold.apply([log.work(*map(put, keys))])
    read: list[bytes] = []
    get = cold.engine.get
    cold.engine.get = lambda key: read.append(key) or get(key)  # type: ignore[func-returns-value, method-assign]
    cold.apply([log.work(compact(cold.store.revision))])
    asked: list[int] = []
    for most in (64, 128):
        with pytest.raises(Misses) as misses:
            cold.store.background(512)
        asked.append(len(misses.value.rows))
        assert asked[-1] <= most
        cold.fetch(list(misses.value.rows))
        read.clear()
        assert cold.store.background(512) == (most == 64)
        assert read == []
    assert sum(asked) >= 150
    assert state_hash(_warm(cold), log)


def _warm(cold: Cold) -> Store:
    cold.engine.chill(None)
    return cold.store


def test_rows_deleted_side_by_side_go_as_one_range(monkeypatch: pytest.MonkeyPatch) -> None:
    store, engine = fresh(Limits(slice_rows=16))
    log = Log()
    for first in range(0, 60, 10):
        run(store, log, *(put(b"%03d" % number) for number in range(first, first + 10)))
    run(store, log, delete(b"000", b"999"))
    run(store, log, put(b"030", b"back"), put(b"0305", b"new"))
    run(store, log, compact(store.revision))
    ranges: list[bytes] = []
    write = engine.write

    def counting(batch: Batch) -> None:
        ranges.extend(row for kind, row, _ in batch.operations if kind == DELETE_RANGE)
        write(batch)

    monkeypatch.setattr(engine, "write", counting)
    while store.background(1000):
        pass
    assert len(ranges) == 2, "before the key that came back, and behind it"
    assert [kv.key for kv in store.range(b"\0", b"\0").kvs] == [b"030", b"0305"]
    low, high = store._keys.span(b"", b"\0")
    assert len(list(engine.scan(low, high))) == 2


def test_a_range_of_cold_history_asks_for_all_of_it_at_once() -> None:
    """Key by key, each round would do the work of all before it: forty keys are slow, twenty thousand an outage."""
    cold = Cold(Limits(cache_bytes=0), Random(1), 1.0)
    log = Log()
    names = [b"k%02d" % n for n in range(40)]
    for value in (b"old", b"new"):
        cold.apply([log.work(*[put(name, value) for name in names])])
    reads = [
        kv_pb2.Operation(range=kv_pb2.RangeRequest(key=b"k", range_end=b"l", revision=41, **fields))
        for fields in ({}, {"limit": 30}, {"count_only": True})
    ]
    write = kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"x"))
    calls = cold.apply([log.work(txn(kv_pb2.TxnRequest(success=[write, *reads])))])
    [answer] = [answer for call in calls for _, answer in call.answers]
    assert isinstance(answer.result, TxnResult)
    _, everything, some, counted = answer.result.results
    assert isinstance(everything, RangeResult)
    assert [kv.value for kv in everything.kvs] == [b"old"] * 40
    assert isinstance(some, RangeResult)
    assert (len(some.kvs), some.count, counted) == (30, 40, RangeResult((), 40, more=False))
    assert sum(bool(call.wanted) for call in calls) <= 4


@pytest.mark.usefixtures("small_bounds")  # the model's, for the rest of the module: so this is its last test
@given(program, st.sampled_from([0.0, 0.5, 1.0]), st.lists(reading, min_size=1, max_size=4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_transaction_that_reads_is_the_models_warm_and_cold(
    entries: list[Any], share: float, requests: list[kv_pb2.TxnRequest], random: Random
) -> None:
    model = Model()
    works, _ = build(entries, model)
    cold = Cold(Limits(slice_rows=5), random, share)
    cold.apply(works)
    for request in requests:
        expected: TxnResult | Refused
        try:
            expected = model.txn(model.decide(request))
        except Refused as refused:
            expected = refused
        for _ in range(ROUNDS):
            try:
                found: TxnResult | NebulaError = cold.store.read(check.txn(request))
            except Misses as misses:
                cold.fetch(list(misses.rows))
                continue
            except NebulaError as error:
                found = error
            break
        cold.release()
        if isinstance(expected, Refused):
            assert isinstance(found, NebulaError)
            assert found.reason == expected.reason
        else:
            assert found == expected

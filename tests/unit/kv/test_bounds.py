"""What has a bound is refused beyond it, whole, before its first write (S20, S23)."""

from __future__ import annotations

import tracemalloc

import pytest

from nebuladb.errors import Reason, ResultTooLarge, TooManyOperations
from nebuladb.kv import check, leases, sessions, txn
from nebuladb.kv.answer import DeleteResult, KeyValue, SessionResult, TxnResult
from nebuladb.kv.dead import Dead
from nebuladb.kv.limits import HISTORY_STRIDE, Limits
from nebuladb.kv.rows import Keys
from nebuladb.kv.store import Store
from nebuladb.kv.txn import Budget
from nebuladb.kv.verify import verify_rows
from nebuladb.kv.view import at
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import (
    CLOCK,
    GENERATION,
    GROUP,
    Log,
    compact,
    delete,
    drain,
    finish,
    fresh,
    grant,
    keep_alive,
    open_session,
    put,
    reopen,
    revoke,
    run,
    state_hash,
)
from tests.unit.kv.helpers import txn as txn_command

R, P, D = kv_pb2.RangeRequest, kv_pb2.TxnPut, kv_pb2.TxnDelete
Op = kv_pb2.Operation
ALL = b"\0"


def keys(count: int) -> list[bytes]:
    return [b"k%03d" % i for i in range(count)]


def filled(count: int, value: bytes = b"v", limits: Limits = Limits()) -> tuple[Store, Log]:  # noqa: B008
    store, _ = fresh(limits)
    log = Log()
    run(store, log, *[put(key, value) for key in keys(count)])
    return store, log


def test_a_transaction_whose_result_is_too_large_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txn, "Budget", lambda: Budget(100, 1000))
    store, log = filled(9, b"x" * 100)
    before = state_hash(store, log)
    request = kv_pb2.TxnRequest(
        success=[Op(put=P(key=b"a")), Op(delete=D(key=b"k000")), Op(range=R(key=ALL, range_end=ALL))]
    )
    [answer] = run(store, log, txn_command(request))
    assert (answer.reason, answer.result, answer.revision) == (Reason.RESULT_TOO_LARGE, None, store.revision)
    assert state_hash(store, log) == before
    assert store.get(b"a") is None


def test_a_transaction_that_reads_its_own_revision_by_number_writes_nothing() -> None:
    """etcd 22 and 65: refused on every replica alike, before its put."""
    store, log = filled(2)
    reads = Op(range=R(key=b"k000", revision=store.revision + 1))
    [answer] = run(store, log, txn_command(kv_pb2.TxnRequest(success=[Op(put=P(key=b"k000")), reads])))
    assert answer.reason == Reason.FUTURE_REVISION
    assert (store.revision, store.get(b"k000").value) == (3, b"v")  # type: ignore[union-attr]


def test_a_transaction_may_look_at_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txn, "Budget", lambda: Budget(20, 1 << 20))
    store, log = filled(9)
    count = Op(range=R(key=ALL, range_end=ALL, count_only=True))
    two, three = (run(store, log, txn_command(kv_pb2.TxnRequest(success=[count] * n)))[0] for n in (2, 3))
    assert isinstance(two.result, TxnResult)
    assert three.reason == Reason.RESULT_TOO_LARGE


def test_a_transaction_or_prev_kv_deletes_so_many_keys_and_a_lone_delete_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txn, "MAX_RESULT_ROWS", 5)
    store, log = filled(9)
    refused = run(
        store,
        log,
        delete(b"k", b"l", prev_kv=True),
        txn_command(kv_pb2.TxnRequest(success=[Op(delete=D(key=b"k", range_end=b"l"))])),
    )
    assert [a.reason for a in refused] == [Reason.RESULT_TOO_LARGE] * 2
    assert store.key_count == 9
    assert run(store, log, delete(b"k", b"l"))[0].result == DeleteResult(9)


def test_a_range_is_bounded_and_a_scan_takes_it_in_pages() -> None:
    store, log = filled(50, b"x" * 50)
    run(store, log, *[put(key, b"new") for key in keys(50)])
    with pytest.raises(ResultTooLarge):
        store.range(b"k", b"l", revision=51, max_bytes=1000)
    found: list[KeyValue] = []
    start = b"k"
    while start:
        page = store.scan(start, b"l", revision=51, limit=7, max_bytes=300, max_rows=3)
        assert page.examined <= 4
        found += page.kvs
        start = page.cursor
    assert [(kv.key, kv.value) for kv in found] == [(key, b"x" * 50) for key in keys(50)]
    limited = store.range(b"k", b"l", limit=3)
    assert (len(limited.kvs), limited.count, limited.more) == (3, 50, True)
    counted = store.range(b"k", b"l", count_only=True)
    assert (counted.kvs, counted.count) == ((), 50)


def test_history_is_walked_in_leaps() -> None:
    store, _ = fresh()
    log = Log()
    versions = 5 * HISTORY_STRIDE
    drain(store, [log.work(*[put(b"k", b"%d" % n) for n in range(versions)])])
    source = store._source
    for revision in (2, 3, HISTORY_STRIDE + 1, versions // 2, versions):
        record, steps, _ = at(source, b"k", source.newest(b"k"), revision)
        assert record is not None
        assert record.value == b"%d" % (revision - 2)
        assert steps <= HISTORY_STRIDE + 2 * versions // HISTORY_STRIDE + 2


def test_deletion_leaves_what_the_floor_needs_and_nothing_else() -> None:
    engine = MemoryEngine(wal=False)
    store, _ = fresh(engine=engine)
    log = Log()
    run(store, log, put(b"a"), put(b"a"), put(b"b"), delete(b"b"), put(b"c"), put(b"a"))
    run(store, log, compact(6))
    finish(store)
    layout = Keys(GROUP, GENERATION)
    left = [row for row, _ in engine.scan(layout.current, layout.current_end)]
    assert left == [layout.current + b"a", layout.current + b"c"]
    history = [row for row, _ in engine.scan(layout.record, layout.session)]
    # a at 3 is what a read at 6 finds; c at 6; a at 7. b and its tombstone at 5 are gone, the versions before too.
    assert history == [layout.record_key(3, 0), layout.record_key(6, 0), layout.record_key(7, 0)]
    run(store, log, compact(7))
    finish(store)
    assert len(list(engine.scan(layout.record, layout.session))) == 2


def test_a_tombstone_at_the_floor_stays_until_the_floor_rises() -> None:
    engine = MemoryEngine(wal=False)
    store, _ = fresh(engine=engine)
    log = Log()
    run(store, log, put(b"b"), delete(b"b"), compact(3))
    finish(store)
    assert [change.deleted for change in store.changes(2)] == [True]
    run(store, log, put(b"c"), compact(4))
    finish(store)
    layout = Keys(GROUP, GENERATION)
    assert [row for row, _ in engine.scan(layout.current, layout.current_end)] == [layout.current + b"c"]
    assert [row for row, _ in engine.scan(layout.record, layout.session)] == [layout.record_key(4, 0)]


def test_a_session_that_is_full_of_answers_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSION_BYTES", 100)
    store, _ = fresh()
    log = Log()
    [opened] = run(store, log, open_session(), put(b"k", b"x" * 200))[:1]
    assert isinstance(opened.result, SessionResult)
    session = opened.result.session
    large = run(store, log, put(b"k", b"1", prev_kv=True, session=session, sequence=1, lowest=1))
    full = run(store, log, put(b"k", b"2", session=session, sequence=2, lowest=1))
    repeat = run(store, log, put(b"k", b"1", prev_kv=True, session=session, sequence=1, lowest=1))
    freed = run(store, log, put(b"k", b"3", session=session, sequence=2, lowest=2))
    assert [a.reason for a in full] == [Reason.SESSION_WINDOW]
    assert repeat == large
    assert freed[0].reason == 0
    assert store.get(b"k").value == b"3"  # type: ignore[union-attr]


def test_a_session_whose_drawn_name_is_taken_gets_the_next_one_and_the_last_is_followed_by_the_first() -> None:
    store, _ = fresh()
    last = (1 << 64) - 1
    opened = run(store, Log(), *(open_session(chosen=chosen) for chosen in (7, 7, last, last)))
    assert [answer.result for answer in opened] == [SessionResult(name) for name in (7, 8, last, 1)]


def test_the_session_used_least_recently_goes_also_after_opening_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    store, engine = fresh()
    log = Log()
    first, second, third = ((1 << 16) + place for place in range(3))
    run(store, log, open_session(), open_session(), open_session(), put(b"k", session=first, sequence=1))
    store = reopen(engine)
    run(store, log, open_session())
    answers = run(store, log, *[put(b"k", session=name, sequence=2) for name in (first, second, third)])
    assert [a.reason for a in answers] == [0, Reason.SESSION_EXPIRED, 0]


def test_a_shard_holds_so_many_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_LEASES", 2)
    store, _ = fresh()
    answers = run(store, Log(), grant(1), grant(2), grant(3), grant(2), revoke(1), grant(3))
    reasons = [0, 0, Reason.TOO_MANY_LEASES, Reason.LEASE_EXISTS, 0, 0]
    assert [answer.reason for answer in answers] == reasons


def test_a_revoke_of_many_keys_is_sliced_and_one_revision() -> None:
    store, _ = fresh(Limits(slice_rows=4))
    log = Log()
    run(store, log, grant(5), grant(6), *[put(key, b"", 5) for key in keys(20)], put(b"other", b"", 6))
    revision = store.revision
    work = log.work(revoke(5))
    calls = 0
    while store.index < work.index:
        assert store.revision == revision
        assert store.lease(5) is not None
        applied = store.apply([work])
        calls += 1
    assert calls == 5
    assert (store.revision, store.key_count, store.lease(5)) == (revision + 1, 1, None)
    assert [change.lease for change in applied.leases] == [5]
    assert [change.key for change in store.changes(revision)] == keys(20)


@pytest.mark.parametrize("tag", [b"\x0a", b"\x12", b"\x1a"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_transaction_of_far_too_many_operations_is_counted_and_not_looked_at(tag: bytes, depth: int) -> None:
    """A request may have 786,000, of two bytes each: an object of each of them takes memory, and has taken 15 s."""
    many = kv_pb2.NestedTxn.FromString((tag + b"\0") * 100_000)
    request = kv_pb2.TxnRequest(success=[Op(txn=many)])
    if not depth:
        request = kv_pb2.TxnRequest(compare=many.compare, success=many.success, failure=many.failure)
    tracemalloc.start()
    try:
        with pytest.raises(TooManyOperations):
            check.txn(request)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


GONE = 500


def buried(limits: Limits) -> tuple[Store, Log]:
    """Keys that were deleted and compacted, one of two in the history still, and two that live."""
    store, log = filled(GONE, limits=limits)
    run(store, log, put(b"a", b"1"), put(b"k250a", b"2"))
    run(store, log, delete(b"k000", b"k250"), delete(b"k251", b"l"), delete(b"k250"), put(b"k007"), delete(b"k007"))
    run(store, log, put(b"z"), compact(store.revision))
    assert store.floor == store.revision - 1
    return store, log


def ranges_over(*operations: Op) -> kv_pb2.TxnRequest:
    absent = kv_pb2.Compare(key=b"k", range_end=b"l", target=kv_pb2.Compare.VERSION, number=1)
    count = Op(range=R(key=b"k", range_end=ALL, count_only=True))
    return kv_pb2.TxnRequest(compare=[absent] * 3, success=[*operations, count, Op(range=R(key=b"k", range_end=b"l"))])


def test_a_transaction_over_many_keys_that_are_gone_is_sliced_and_removes_them() -> None:
    """Nothing is charged for them, so nothing else bounds what one turn of the loop passes over."""
    for request in (ranges_over(Op(put=P(key=b"new"))), ranges_over(Op(delete=D(key=b"k", range_end=b"l")))):
        (one, one_log), (other, other_log) = buried(Limits()), buried(Limits(dead_rows=20))
        works = [one_log.work(put(b"y"), txn_command(request), delete(b"k", b"l", prev_kv=True))]
        other_log.work(put(b"y"), CLOCK, CLOCK)
        whole, parts = drain(one, works), drain(other, works)
        assert len(parts) > GONE / 25
        assert max(part.examined for part in parts[:-1]) < 100
        assert all(part.midway for part in parts[:-2])  # others get the loop in between
        assert len(whole) < 4
        assert [answer for part in parts for answer in part.answers] == [a for part in whole for a in part.answers]
        assert one.scan(b"a").kvs == other.scan(b"a").kvs
        assert state_hash(one, one_log) == state_hash(other, other_log)
        finish(one)
        finish(other)
        assert other.deletion.buried >= one.deletion.buried == GONE - 1  # by which the data store is flushed
        assert list(verify_rows(other._engine, GROUP, GENERATION)) == []


def test_a_read_passes_over_so_many_keys_that_are_gone_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = buried(Limits())
    assert store.read(check.txn(ranges_over())).succeeded
    monkeypatch.setattr(txn, "Dead", lambda: Dead(GONE - 2))
    with pytest.raises(ResultTooLarge, match="are still being removed"):
        store.read(check.txn(ranges_over()))
    with pytest.raises(ResultTooLarge, match="are still being removed"):
        store.range(b"k", ALL)
    finish(store)
    assert store.read(check.txn(ranges_over())).succeeded
    assert [kv.key for kv in store.range(b"k", ALL).kvs] == [b"k250a", b"z"]


def test_a_pin_is_closed_when_a_transaction_removes_what_it_shows() -> None:
    store, log = filled(GONE, limits=Limits(dead_rows=20))
    early = store.pin()
    run(store, log, delete(b"k", b"l"))
    late = store.pin()
    run(store, log, put(b"z"))
    run(store, log, compact(store.revision))
    run(store, log, txn_command(ranges_over(Op(put=P(key=b"new")))))
    assert (early.closed, late.closed) == (True, False)
    assert late.scan(b"a").kvs == ()


def test_commands_that_write_nothing_are_sliced_as_those_that_do() -> None:
    for command in (keep_alive(5), put(b"k", lease=5), compact(0), delete(b"k"), put(b"k", epoch=9)):
        store, _ = fresh(Limits(slice_rows=10))
        log = Log()
        works = [log.work(*[command] * 25), log.work(*[command] * 7), *(log.work(command) for _ in range(8))]
        calls = drain(store, works)
        assert [(len(call.answers), call.examined) for call in calls] == [(10, 10)] * 4

"""Transactions by example: nested ones, several changes of a key at one revision, what is refused, in which order."""

from __future__ import annotations

from typing import Any

import pytest

from nebuladb.errors import InvariantViolation, Reason
from nebuladb.kv import check
from nebuladb.kv.answer import Answer, DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from nebuladb.kv.limits import MAX_TXN_DEPTH, MAX_TXN_TOTAL, Limits
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import kv_pb2 as pb
from tests.unit.kv.helpers import Log, attached, compact, delete, finish, fresh, grant, put, run, state_hash, txn

Op = pb.Operation
ALL = b"\0"


def puts(key: bytes, value: bytes = b"", **fields: Any) -> Op:
    return Op(put=pb.TxnPut(key=key, value=value, **fields))


def deletes(key: bytes, end: bytes = b"", **fields: Any) -> Op:
    return Op(delete=pb.TxnDelete(key=key, range_end=end, **fields))


def reads(key: bytes, end: bytes = b"", **fields: Any) -> Op:
    return Op(range=pb.RangeRequest(key=key, range_end=end, **fields))


def nested(success: list[Op], failure: list[Op] | None = None, compare: list[pb.Compare] | None = None) -> Op:
    return Op(txn=pb.NestedTxn(compare=compare or [], success=success, failure=failure or []))


def exists(key: bytes) -> pb.Compare:
    return pb.Compare(key=key, target=pb.Compare.VERSION, result=pb.Compare.GREATER)


def do(store: Store, log: Log, *success: Op, **fields: Any) -> Answer:
    [answer] = run(store, log, txn(pb.TxnRequest(success=success, **fields)))
    return answer


def filled(*keys: bytes, limits: Limits = Limits()) -> tuple[Store, Log]:  # noqa: B008
    store, log = fresh(limits)[0], Log()
    run(store, log, *[put(key, key) for key in keys])
    return store, log


def test_all_compares_see_the_state_before_the_outermost_transaction() -> None:
    """etcd 16 and 19."""
    store, log = filled(b"a")
    answer = do(
        store,
        log,
        puts(b"b"),
        deletes(b"a"),
        nested([reads(b"b")], [reads(b"a"), nested([puts(b"c", b"1")], compare=[exists(b"a")])], [exists(b"b")]),
        reads(b"a", ALL, count_only=True),
    )
    gone, two, count = RangeResult((), 0, more=False), TxnResult(True, (PutResult(),)), RangeResult((), 2, more=False)  # noqa: FBT003
    inner = TxnResult(False, (gone, two))  # noqa: FBT003
    assert answer.result == TxnResult(True, (PutResult(), DeleteResult(1), inner, count))  # noqa: FBT003
    assert (answer.revision, store.get(b"c")) == (3, KeyValue(b"c", 3, 3, 1, 0, b"1"))


def test_a_put_after_a_deletion_to_the_last_key_keeps_nothing_and_changes_nothing() -> None:
    """etcd 64: there, the server panics."""
    store, log = filled(b"a", b"b")
    before = state_hash(store, log)
    for ignored in ({"ignore_value": True}, {"ignore_lease": True, "value": b"v"}):
        answer = do(store, log, puts(b"x"), deletes(b"a", ALL), puts(b"b", **ignored))
        assert (answer.reason, answer.result) == (Reason.KEY_NOT_FOUND, None)
    assert state_hash(store, log) == before


@pytest.mark.parametrize("deleted_first", [True, False])
def test_a_key_may_change_twice_at_one_revision(deleted_first: bool) -> None:
    """A deletion up to the last key and a put of one that it covers are no duplicates to etcd."""
    store, log = filled(b"a", b"b")
    run(store, log, grant(7, 60))
    both = [deletes(b"b", ALL, prev_kv=True), puts(b"b", b"new", lease=7, prev_kv=True)]
    answer = do(store, log, *(both if deleted_first else both[::-1]))
    old = KeyValue(b"b", 3, 3, 1, 0, b"b")
    assert isinstance(answer.result, TxnResult)
    if deleted_first:
        assert answer.result.results == (DeleteResult(1, (old,)), PutResult())
    else:
        second = KeyValue(b"b", 3, 4, 2, 7, b"new")
        assert answer.result.results == (PutResult(old), DeleteResult(1, (second,)))
    now = KeyValue(b"b", 4, 4, 1, 7, b"new") if deleted_first else None
    assert (store.get(b"b"), store.get(b"b", 3), store.get(b"b", 4)) == (now, old, now)
    assert [(c.revision, c.deleted) for c in store.changes(3)] == [(4, deleted_first), (4, not deleted_first)]
    assert attached(store, 7) == ((b"b",) if deleted_first else ())
    assert store.key_count == (2 if deleted_first else 1)
    digest = state_hash(store, log)
    run(store, log, compact(4))
    finish(store)
    assert store.get(b"b", 4) == now
    run(store, log, put(b"b", b"again"), compact(5))
    finish(store)
    found = store.get(b"b")
    assert found is not None
    assert found.version == (2 if deleted_first else 1)
    assert state_hash(store, log) != digest


@pytest.mark.parametrize(
    ("operations", "refused"),
    [
        ([puts(b"a"), puts(b"a")], True),
        ([puts(b"a"), deletes(b"a")], True),
        ([puts(b"b"), deletes(b"a", b"c")], True),
        ([deletes(b"a"), deletes(b"a")], False),
        ([puts(b"b"), deletes(b"a", ALL)], False),  # etcd takes the end for a key below the start
        ([puts(b"b"), deletes(b"c", b"a")], False),
        ([nested([puts(b"a")], [puts(b"a")])], False),
        ([nested([puts(b"a")], [puts(b"b")]), nested([puts(b"b")])], True),
        ([puts(b"a"), nested([], [puts(b"a")])], True),
        ([deletes(b"a"), nested([puts(b"a")])], True),
        ([nested([deletes(b"a", b"c")]), nested([puts(b"b")])], True),
        ([nested([puts(b"b")]), nested([deletes(b"a", b"c")])], False),  # only earlier ones count
        ([nested([deletes(b"a", b"c")]), puts(b"b")], True),
        ([nested([deletes(b"a"), nested([deletes(b"c")])]), nested([nested([puts(b"c")])])], True),
    ],
)
def test_what_etcd_takes_for_a_duplicate_is_refused_and_nothing_else(operations: list[Op], *, refused: bool) -> None:
    """etcd 18, as 3.5.16 answers each."""
    store, log = filled()
    assert do(store, log, *operations).reason == (Reason.DUPLICATE_KEY if refused else 0)
    assert do(store, log, failure=operations).reason == (Reason.DUPLICATE_KEY if refused else 0)


def test_nested_operations_count() -> None:
    """etcd 17: what a level takes, those below it can't have."""
    store, log = filled()
    read = reads(b"a", count_only=True)
    for inner, taken in ((64, True), (65, False)):
        answer = do(store, log, nested([read] * inner), *[read] * 63)
        assert (answer.reason == 0, taken) == (taken, answer.reason != Reason.TOO_MANY_OPERATIONS)


def test_nesting_and_the_whole_are_bounded() -> None:
    """S23."""
    store, log = filled()

    def deep(levels: int) -> Op:
        operation = puts(b"k%d" % levels)
        for _ in range(levels):
            operation = nested([operation])
        return operation

    assert do(store, log, deep(MAX_TXN_DEPTH)).reason == 0
    assert do(store, log, deep(MAX_TXN_DEPTH + 1)).reason == Reason.TOO_MANY_OPERATIONS
    wide = [nested([nested([reads(b"a")] * 42)] * 42)] * 42
    assert MAX_TXN_TOTAL < 42**3
    assert do(store, log, *wide).reason == Reason.TOO_MANY_OPERATIONS


def test_a_transaction_is_refused_for_what_etcd_would_name_first() -> None:
    """All puts, then all ranges; of a put the key, then the lease (etcd 11, 12, 22)."""
    store, log = filled(b"a")
    future, missing = reads(b"a", revision=99), puts(b"none", ignore_value=True, lease=9)
    assert do(store, log, future, missing).reason == Reason.KEY_NOT_FOUND
    assert do(store, log, future, nested([puts(b"none", lease=9)])).reason == Reason.LEASE_NOT_FOUND
    assert do(store, log, future, puts(b"b")).reason == Reason.FUTURE_REVISION
    assert do(store, log, puts(b"b"), failure=[future]).reason == 0
    alone = pb.PutRequest(key=b"none", ignore_value=True, lease=9)
    assert run(store, log, put(b"x")._replace(body=alone.SerializeToString()))[0].reason == Reason.LEASE_NOT_FOUND


def test_a_negative_revision_in_a_transaction_is_compacted_once_something_was() -> None:
    store, log = filled(b"a")
    assert do(store, log, reads(b"a", revision=-1)).reason == 0
    assert do(store, log, reads(b"a", revision=-2)).reason == Reason.COMPACTED
    run(store, log, compact(2))
    assert do(store, log, reads(b"a", revision=-1)).reason == Reason.COMPACTED


def test_the_filters_of_a_read_hold_for_a_single_key_too() -> None:
    """etcd counts the key and leaves it out."""
    store, log = filled(b"a", b"b")  # at revisions 2 and 3

    def read(**fields: Any) -> tuple[int, int]:
        result = do(store, log, reads(b"b", **fields)).result
        assert isinstance(result, TxnResult)
        found = result.results[0]
        assert isinstance(found, RangeResult)
        return len(found.kvs), found.count

    assert read(min_mod_revision=3, max_mod_revision=3, min_create_revision=3, max_create_revision=3) == (1, 1)
    assert read(min_mod_revision=4) == read(max_mod_revision=2) == (0, 1)
    assert read(min_create_revision=4) == read(max_create_revision=2) == (0, 1)


def test_a_target_without_an_order_sorts_what_the_limit_took() -> None:
    """etcd 4 to 8; values fall as keys rise."""
    store, log = fresh()[0], Log()
    run(store, log, *[put(b"%c" % (97 + n), b"%d" % (9 - n)) for n in range(5)])
    ranges = pb.RangeRequest

    def keys(**fields: Any) -> tuple[bytes, int, bool]:
        result = do(store, log, reads(b"a", b"z", **fields)).result
        assert isinstance(result, TxnResult)
        found = result.results[0]
        assert isinstance(found, RangeResult)
        return b"".join(kv.key for kv in found.kvs), found.count, found.more

    assert keys(target=ranges.VALUE) == (b"edcba", 5, False)
    assert keys(target=ranges.VALUE, limit=2) == (b"cb", 5, True)
    assert keys(target=ranges.VALUE, order=ranges.ASCEND, limit=2, keys_only=True) == (b"ed", 5, True)
    assert keys(order=ranges.DESCEND, limit=3) == (b"edc", 5, True)
    assert keys(order=ranges.ASCEND, limit=5) == (b"abcde", 5, False)
    assert keys(min_mod_revision=4, max_create_revision=5, limit=1) == (b"c", 5, True)
    assert keys(max_mod_revision=-1) == (b"", 5, False)
    assert keys(count_only=True, limit=2) == (b"", 5, False)
    assert keys(target=ranges.VERSION, order=ranges.DESCEND) == (b"abcde", 5, False)


def test_a_read_between_two_slices_sees_nothing_of_a_deletion() -> None:
    """S23, S24: what lies under the next revision is not there yet."""
    store, log = filled(*[b"k%d" % n for n in range(9)], limits=Limits(slice_rows=3))
    request = pb.TxnRequest(
        compare=[exists(b"k0"), pb.Compare(key=b"k", range_end=b"l", target=pb.Compare.VERSION, number=1)],
        success=[reads(b"k0"), reads(b"k", b"l"), nested([reads(b"k1", keys_only=True)])],
    )
    before = store.read(check.txn(request))
    assert isinstance(before.results[1], RangeResult)
    assert (before.succeeded, before.results[1].count) == (True, 9)
    work = log.work(delete(b"k", b"l"))
    assert store.apply([work]).partial
    slices = 0
    while store.index < work.index:
        assert store.read(check.txn(request)) == before
        store.apply([work])
        slices += 1
    assert slices > 1
    assert store.read(check.txn(request)) == TxnResult(False, ())  # noqa: FBT003


def test_only_what_writes_nothing_is_read_without_the_log() -> None:
    store, _ = filled(b"a")
    with pytest.raises(InvariantViolation):
        store.read(check.txn(pb.TxnRequest(success=[nested([], [deletes(b"a")])])))

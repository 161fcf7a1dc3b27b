"""What one command or one turn reads and holds is bounded in bytes, also where rows are few and answers small (S23)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from nebuladb.errors import InvariantViolation, Reason
from nebuladb.kv import check, deletion, machine, txn
from nebuladb.kv.answer import DeleteResult, TxnResult
from nebuladb.kv.limits import Limits
from nebuladb.kv.loans import FETCH_BYTES, FIRST_ROWS, Misses
from nebuladb.kv.store import Store
from nebuladb.kv.view import STRETCH_BYTES
from nebuladb.kv.watch import WatchHub
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.kv.helpers import (
    HASH,
    Log,
    Told,
    compact,
    delete,
    drain,
    fresh,
    grant,
    put,
    reopen,
    revoke,
    run,
    state_hash,
)
from tests.unit.kv.helpers import txn as txn_command
from tests.unit.kv.test_cold import Cold
from tests.unit.kv.test_watch import feed

MIB = 1 << 20
VALUE = bytes(MIB)
Op, R, P, D = kv_pb2.Operation, kv_pb2.RangeRequest, kv_pb2.TxnPut, kv_pb2.TxnDelete


def filled(count: int, limits: Limits = Limits(), lease: int = 0) -> tuple[Store, Log]:  # noqa: B008
    """Keys with a value of one MiB each, all of it the same bytes."""
    store, _ = fresh(limits)
    log = Log()
    run(store, log, grant(1), *(put(b"k%03d" % number, VALUE, lease) for number in range(count)))
    return store, log


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """What is allocated within is never more than `size` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def compared(key: bytes = b"k", end: bytes = b"l", below: int = 1000) -> kv_pb2.TxnRequest:
    """That revisions are lower than that."""
    less = kv_pb2.Compare(key=key, range_end=end, target=kv_pb2.Compare.MOD, result=kv_pb2.Compare.LESS, number=below)
    return kv_pb2.TxnRequest(compare=[less], success=[Op(put=P(key=b"a"))])


def deleting(key: bytes = b"k", end: bytes = b"l") -> kv_pb2.TxnRequest:
    return kv_pb2.TxnRequest(success=[Op(delete=D(key=key, range_end=end))])


def ranging(**fields: Any) -> kv_pb2.TxnRequest:
    return kv_pb2.TxnRequest(success=[Op(put=P(key=b"a")), Op(range=R(key=b"k", range_end=b"l", **fields))])


TOO_MUCH = {
    "compare": txn_command(compared()),
    "delete": txn_command(deleting()),
    "count": txn_command(ranging(count_only=True)),
    "keys": txn_command(ranging(keys_only=True)),
    "limit": txn_command(ranging(keys_only=True, limit=1)),
    "filter": txn_command(ranging(max_mod_revision=1)),
    "parts": txn_command(
        kv_pb2.TxnRequest(compare=[compared(b"k", b"k050").compare[0]], success=[deleting(b"k050", b"l").success[0]])
    ),
    "last": txn_command(
        kv_pb2.TxnRequest(
            compare=[compared(b"k", b"k063").compare[0]],
            success=[Op(put=P(key=b"k000"))],
            failure=[Op(put=P(key=b"k000"))],
        )
    ),
    "puts": txn_command(kv_pb2.TxnRequest(success=[Op(put=P(key=b"k%03d" % n)) for n in range(100)])),
    "kept": txn_command(
        kv_pb2.TxnRequest(success=[Op(put=P(key=b"k%03d" % n, value=b"", ignore_lease=True)) for n in range(100)])
    ),
    "reads": txn_command(
        kv_pb2.TxnRequest(
            success=[Op(put=P(key=b"a")), *(Op(range=R(key=b"k%03d" % n, keys_only=True)) for n in range(100))]
        )
    ),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_transaction_that_would_read_too_much_is_refused_and_changes_nothing(what: str) -> None:
    store, log = filled(100)
    before = state_hash(store, log)
    with at_most(80 * MIB):
        [answer] = run(store, log, TOO_MUCH[what])
    assert answer.reason == Reason.RESULT_TOO_LARGE
    assert "64 MiB" in answer.message
    assert state_hash(store, log) == before
    if what != "puts":
        old = run(store, log, TOO_MUCH[what]._replace(version=1))
        assert old[0].reason == 0, "what stood in the log before there was the bound is applied as it was"


def test_prev_kv_of_a_range_is_refused_before_its_values_are_held() -> None:
    store, log = filled(100)
    with at_most(10 * MIB):
        [answer] = run(store, log, delete(b"k", b"l", prev_kv=True))
    assert answer.reason == Reason.RESULT_TOO_LARGE
    found = tuple(store.get(b"k%03d" % number) for number in range(2))
    assert run(store, log, delete(b"k", b"k002", prev_kv=True))[0].result == DeleteResult(2, found)  # type: ignore[arg-type]


def test_a_compare_of_a_range_holds_nothing() -> None:
    store, log = filled(50)
    found = []
    for end in (b"k030", b"l"):
        with at_most(10 * MIB):
            [answer] = run(store, log, txn_command(compared(b"k", end, 33)))
        assert isinstance(answer.result, TxnResult)
        found.append(answer.result.succeeded)
    assert found == [True, False]


@pytest.mark.parametrize("revoked", [False, True])
def test_a_deletion_holds_a_slice_of_the_values_it_supersedes(revoked: bool) -> None:
    store, log = filled(100, lease=1)
    work = log.work(revoke(1) if revoked else delete(b"k", b"l"))
    with at_most(12 * MIB):
        calls = drain(store, [work])
    assert len(calls) >= 100 // 5
    assert store.key_count == 0


def test_small_puts_over_large_values_are_cut_by_what_they_supersede() -> None:
    store, log = filled(60)
    work = log.work(*(put(b"k%03d" % number) for number in range(60)))
    calls = drain(store, [work])
    assert [len(call.answers) for call in calls] == [4] * 15


def cold(count: int, value: bytes, lease: int = 0) -> tuple[Cold, Log]:
    """Keys of which none is in memory."""
    made = Cold(Limits(cache_bytes=0), Random(1), 1.0)
    made.engine.chill(None)
    log = Log()
    made.apply([log.work(grant(1), *(put(b"k%03d" % number, value, lease) for number in range(count)))])
    made.store.close()
    made.store = reopen(made.engine, Limits(cache_bytes=0))
    keys = made.store._keys
    made.engine.chill(lambda row: row.startswith((keys.current, keys.record)))
    return made, log


@pytest.mark.parametrize("revoked", [False, True])
def test_rows_are_fetched_few_at_a_time_where_they_are_large(revoked: bool) -> None:
    made, log = cold(300, bytes(FETCH_BYTES // 20), lease=1)
    # Beside many small keys, so that the average says nothing.
    made.apply([log.work(*(put(b"small%05d" % number) for number in range(20_000)))])
    commands = [revoke(1)] if revoked else [put(b"k%03d" % number) for number in range(300)]
    sizes: list[int] = []
    fetch = made.fetch

    def counted(rows: list[bytes], between: Callable[[], None] = lambda: None) -> None:
        sizes.append(len(rows))
        fetch(rows, between)

    made.fetch = counted  # type: ignore[method-assign]
    made.apply([log.work(*commands)])
    assert sizes[0] <= FIRST_ROWS
    assert max(sizes[1:]) <= 40
    assert sum(sizes) <= 300 + FIRST_ROWS + 40, "and none twice"


def loans_at_most(made: Cold, size: int) -> None:
    """`made` fetches as a node does, and never has more on loan."""
    loans = made.store._source.loans

    def fetch(rows: list[bytes], between: Callable[[], None] = lambda: None) -> None:
        made.store.borrow(rows)
        made._held += rows
        made.store.supply(rows, made.store.fetch(rows))
        assert sum(map(len, filter(None, loans.rows.values()))) <= size

    made.fetch = fetch  # type: ignore[method-assign]


def test_large_rows_behind_small_ones_are_not_all_fetched_at_once() -> None:
    """Nothing told how large they were: hundreds of MiB on every replica."""
    made, log = cold(600, VALUE)
    made.apply([log.work(*(put(b"small%05d" % number) for number in range(10_000)))])
    loans_at_most(made, FETCH_BYTES + 16 * MIB)
    made.apply([log.work(*(put(b"new%05d" % n) for n in range(384)), *(put(b"k%03d" % n) for n in range(600)))])
    assert made.store.size < 600 * MIB // 10


def test_what_misses_row_after_row_does_not_bring_others_along_each_time() -> None:
    """What is fetched for a command stays until that is done: of later commands, as many rows at each miss again."""
    made, log = cold(400, VALUE)
    old = made.store.revision
    made.apply([log.work(*(put(b"k%03d" % number, VALUE) for number in range(200)))])
    reads = kv_pb2.TxnRequest(
        success=[
            Op(put=P(key=b"a")),
            *(Op(range=R(key=b"k%03d" % n, revision=old, count_only=True)) for n in range(20)),
        ]
    )
    loans_at_most(made, 2 * 20 * MIB + FETCH_BYTES + 8 * MIB)
    made.apply([log.work(txn_command(reads), *(put(b"k%03d" % number) for number in range(20, 400)))])


def test_what_a_branch_reads_that_is_not_taken_is_not_fetched_with_each_row_of_the_other() -> None:
    made, log = cold(200, VALUE)
    reads = kv_pb2.TxnRequest(
        compare=[kv_pb2.Compare(key=b"none", target=kv_pb2.Compare.VERSION, number=1)],
        success=[Op(range=R(key=b"k%03d" % n, count_only=True)) for n in range(100)],
        failure=[Op(range=R(key=b"k%03d" % n, count_only=True)) for n in range(100, 130)],
    )
    loans_at_most(made, 30 * MIB + 2 * FETCH_BYTES + 4 * MIB)
    assert made.patient(lambda: made.store.read(check.txn(reads))).results
    commands = [txn_command(kv_pb2.TxnRequest(compare=reads.compare, success=reads.success, failure=[
        *reads.failure, Op(put=P(key=b"a"))
    ]))]  # fmt: skip
    made.apply([log.work(*commands)])


def test_small_rows_are_fetched_ever_more_at_a_time() -> None:
    made, log = cold(900, b"v")
    work = log.work(*(put(b"k%03d" % number) for number in range(900)))
    asked = [len(call.wanted) for call in made.apply([work]) if call.wanted]
    assert asked == [128, 256, 512, 4]
    assert made.store._source.loans.ahead == FIRST_ROWS, "what misses next may be large"


def test_a_scan_ends_a_stretch_where_it_has_looked_at_so_many_bytes() -> None:
    store, log = filled(50)
    run(store, log, *(put(b"k%03d" % number, b"small") for number in range(50)))
    for revision in (0, 51):
        for fields in ({"limit": 0}, {"limit": 1000, "keys_only": True}, {"limit": 1000, "keep": lambda _: False}):
            pin, counted, cursor, pages = store.pin(revision), 0, b"k", 0
            while cursor:
                page = pin.scan(cursor, b"l", max_bytes=1 << 30, **fields)
                assert page.read <= STRETCH_BYTES + MIB
                counted, cursor, pages = counted + page.counted, page.cursor, pages + 1
            assert counted == 50
            assert (pages > 10) == bool(revision)


def watched(sizes: list[int], count: int) -> tuple[WatchHub, Store, Any, list[Any]]:
    """A hub with a lagging watch on `count` keys of a MiB, deleted at one revision; and what it reads goes to the
    list."""
    store, log = filled(count)
    hub = WatchHub(store)
    watcher = hub.watch(b"k", b"l", prev_kv=True)
    feed(store, hub, log, delete(b"k", b"l"))
    feed(store, hub, log, put(b"k"))
    read = store.changes

    def counted(*args: Any, **named: Any) -> Any:
        found = read(*args, **named)
        sizes.append(sum(len(change.previous.value) for change in found if change.previous))
        return found

    store.changes = counted  # type: ignore[method-assign]
    return hub, store, watcher, sizes


def test_a_large_deletion_is_told_in_parts_of_so_many_bytes() -> None:
    hub, store, watcher, sizes = watched([], 20)
    other = hub.watch(b"k005", b"k007", start_revision=store.revision - 1)
    told, others = Told(), Told()
    while watcher.lagging:
        hub.catch_up(256)
        batches = watcher.take()
        assert sum(batch.size for batch in batches) <= 3 * MIB
        told.add(batches)
        others.add(other.take())
    assert max(sizes) <= 2 * MIB
    assert len(sizes) >= 10
    assert [(batch.revision, len(batch.events)) for batch in told.batches] == [
        (store.revision - 1, 20), (store.revision, 1),
    ]  # fmt: skip
    assert [event.kv.key for event in told.batches[0].events] == [b"k%03d" % number for number in range(20)]
    assert all(event.previous is not None and event.previous.value == VALUE for event in told.batches[0].events)
    assert [len(batch.events) for batch in others.batches] == [2]


def test_watches_are_not_moved_to_an_older_state() -> None:
    store, _ = filled(2)
    hub = WatchHub(store)
    older, _ = fresh()
    with pytest.raises(InvariantViolation):
        hub.rebase(older)


def background(made: Cold) -> list[int]:
    """All background work; how many rows each fetch of it was."""
    asked: list[int] = []
    while made.store.busy:
        try:
            made.store.background(256)
            made.release()
        except Misses as misses:
            asked.append(len(misses.rows))
            made.fetch(list(misses.rows))
    return asked


@pytest.mark.parametrize("kind", ["hash", "compaction", "tombstones"])
def test_background_work_fetches_few_rows_at_a_time_where_they_are_large(kind: str) -> None:
    made, log = cold(200, bytes(200_000))
    made.apply([log.work(*(put(b"k%03d" % number, bytes(200_000)) for number in range(200)))])
    if kind == "tombstones":
        made.apply([log.work(*(delete(b"k%03d" % number) for number in range(200)))])
        made.apply([log.work(*(put(b"k%03d" % number, bytes(200_000)) for number in range(200)))])
    made.apply([log.work(HASH if kind == "hash" else compact(made.store.revision))])
    asked = background(made)
    assert sum(asked) >= 200
    assert max(asked) <= deletion.FIRST_ROWS
    if kind != "tombstones":
        assert max(asked[1:]) <= 24


def test_small_rows_are_deleted_as_many_at_a_time_as_ever() -> None:
    made, log = cold(2000, b"v")
    made.apply([log.work(*(put(b"k%03d" % number) for number in range(2000)))])
    made.apply([log.work(compact(made.store.revision))])
    asked = background(made)
    assert max(asked) == 256
    assert len(asked) <= 25


def test_the_bounds_are_read_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txn, "MAX_TXN_BYTES", 3 * MIB)
    monkeypatch.setattr(machine, "DELETION_BYTES", 1)
    store, log = filled(4, lease=1)
    assert run(store, log, txn_command(deleting()))[0].reason == Reason.RESULT_TOO_LARGE
    assert run(store, log, txn_command(deleting(b"k002")))[0].reason == 0
    assert run(store, log, revoke(1))[0].reason == 0
    assert store.key_count == 0


def test_an_entry_of_many_transactions_is_cut_by_what_they_read() -> None:
    store, log = filled(40)
    work = log.work(*(txn_command(ranging(count_only=True)) for _ in range(20)))
    assert [len(call.answers) for call in drain(store, [work])] == [1] * 20


def test_history_is_fetched_a_few_rows_at_a_time_where_the_newest_records_do_not_tell_how_large_it_is() -> None:
    """All of it was asked for at once, and then refused, at each start again."""
    made, log = cold(300, bytes(200_000))
    old = made.store.revision
    made.apply([log.work(delete(b"k", b"l"))])
    history = kv_pb2.RangeRequest(key=b"k", range_end=b"l", revision=old, count_only=True)
    reads = kv_pb2.TxnRequest(success=[kv_pb2.Operation(range=history), kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"x"))])
    calls = made.apply([log.work(txn_command(reads))])
    assert max(len(call.wanted) for call in calls) <= FIRST_ROWS + 1


def test_keys_alone_are_read_however_large_their_values_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leads an election, among values that no transaction may look at together."""
    monkeypatch.setattr(txn, "MAX_TXN_BYTES", MIB)
    store, _ = filled(4)
    assert len(store.range(b"k", b"l", keys_only=True).kvs) == 4

"""A key with many large versions above the one that is asked for: each is looked at once, and let go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nebuladb.errors import Reason, ResultTooLarge
from nebuladb.kv import check
from nebuladb.kv.answer import Answer, RangeResult, TxnResult
from nebuladb.kv.findings import Findings
from nebuladb.kv.limits import MAX_TXN_BYTES, Limits
from nebuladb.kv.loans import Misses
from nebuladb.kv.source import EngineSource
from nebuladb.kv.store import Store
from nebuladb.kv.trail import Trail
from nebuladb.kv.view import STRETCH_BYTES
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import MemoryEngine
from tests.unit.kv.helpers import Log, delete, fresh, put, reopen, run, txn

SIZE, VERSIONS = 256 << 10, 300
OLD = 3
"""The revision of the second version."""


class Counting(MemoryEngine):
    """Counts the rows of the history that are read."""

    def __init__(self) -> None:
        super().__init__(wal=False)
        self.cold = True
        self.looks = 0
        self.asked = 0
        """How often it was asked what is in memory of the history."""

    def get_cached(self, key: bytes) -> tuple[bool, bytes | None]:
        self.asked += len(key) == 25
        return (False, None) if self.cold else super().get_cached(key)

    def get(self, key: bytes) -> bytes | None:
        self.looks += len(key) == 25
        return super().get(key)


def lend(store: Store, rows: Sequence[bytes], held: list[bytes]) -> None:
    """Fetch `rows`, which somebody lacks; `held`: what is to be given back in the end."""
    store.borrow(rows)
    held += rows
    store.supply(rows, store.fetch(rows))


def read(store: Store, request: kv_pb2.TxnRequest, findings: Findings | None = None) -> tuple[TxnResult, list[bytes]]:
    """What `request` reads, and the rows that were fetched for it."""
    held = list[bytes]()
    while True:
        try:
            result = store.read(check.txn(request), findings)
            break
        except Misses as misses:
            rows = list(misses.rows)
        lend(store, rows, held)
    store.give_back(held)
    return result, held


def apply(store: Store, request: kv_pb2.TxnRequest) -> tuple[Answer, int]:
    """The answer to `request`, and how often rows were fetched for it."""
    fetches, held = 0, list[bytes]()
    work = Log(store.index).work(txn(request))
    while (applied := store.apply([work])).wanted:
        fetches += 1
        lend(store, applied.wanted, held)
    store.give_back(held)
    ((_, answer),) = applied.answers
    return answer, fetches


@pytest.fixture
def deep() -> tuple[Store, Counting]:
    engine = Counting()
    engine.cold = False
    store, _ = fresh(engine=engine)
    log, value = Log(), bytes(SIZE)
    run(store, log, put(b"k", b"first"))
    run(store, log, put(b"k", b"old"))
    for _ in range(VERSIONS):
        run(store, log, put(b"k", value))
    engine.cold, engine.looks = True, 0
    return reopen(engine, Limits(cache_bytes=0)), engine


@pytest.mark.parametrize("cold", [True, False])
def test_a_get_looks_at_each_version_once_and_holds_one(deep: tuple[Store, Counting], cold: bool) -> None:
    """It looked at all of them again for each one that it lacked, and held them all."""
    store, engine = deep
    engine.cold, engine.looks = cold, 0
    trail, held = Trail(), list[bytes]()
    while True:
        seen = engine.looks
        try:
            found = store.get(b"k", OLD, trail)
            break
        except Misses as misses:
            assert engine.looks - seen <= STRETCH_BYTES // SIZE + 2
            if misses.alone:
                store.give_back(held)
                held = []
            rows = list(misses.rows)
        lend(store, rows, held)
        assert store.borrowed <= 2
    store.give_back(held)
    assert found is not None
    assert found.value == b"old"
    assert engine.looks <= VERSIONS + VERSIONS * SIZE // STRETCH_BYTES + 2


@pytest.mark.parametrize("limit", [0, 10])
def test_a_scan_ends_a_stretch_amid_a_key_s_history(deep: tuple[Store, Counting], limit: int) -> None:
    """It looked at all of it in one turn of the loop."""
    store, engine = deep
    engine.cold = False
    run(store, Log(store.index), put(b"j"), put(b"k\0"), put(b"l"))
    pin, counted, cursor, values, pages = store.pin(OLD), 0, b"\0", list[bytes](), 0
    engine.looks = 0
    while cursor:
        page = pin.scan(cursor, b"\0", limit=limit)
        assert page.read <= STRETCH_BYTES + 2 * SIZE
        counted, cursor, pages = counted + page.counted, page.cursor, pages + 1
        values += [kv.value for kv in page.kvs]
    assert (counted, values) == (1, [b"old"] if limit else [])
    assert pages > VERSIONS * SIZE // STRETCH_BYTES
    assert engine.looks <= VERSIONS + pages


def test_a_stretch_of_few_bytes_gets_on_all_the_same(deep: tuple[Store, Counting]) -> None:
    store, engine = deep
    engine.cold = False
    pin, cursor, pages = store.pin(OLD), b"k", 0
    while cursor:
        cursor, pages = pin.scan(cursor, b"l", max_read=1).cursor, pages + 1
    assert pages == VERSIONS


def test_a_trail_is_of_one_key_and_revision(deep: tuple[Store, Counting]) -> None:
    store, engine = deep
    engine.cold = False
    log = Log(store.index)
    run(store, log, put(b"a", b"1"), delete(b"a"), put(b"a", b"2"))
    end = store.revision
    trail = Trail()
    with pytest.raises(Misses):
        store.get(b"k", OLD, trail)
    values = [kv and kv.value for kv in (store.get(b"a", end - back, trail) for back in (2, 1, 0, 3))]
    assert values == [b"1", None, b"2", None]


def test_a_transaction_looks_no_further_back_than_it_may(deep: tuple[Store, Counting]) -> None:
    """It looked at all versions, and was refused then."""
    store, engine = deep
    engine.cold = False
    request = kv_pb2.TxnRequest()
    request.success.add(range=kv_pb2.RangeRequest(key=b"k", revision=OLD))
    with pytest.raises(ResultTooLarge, match="64 MiB"):
        store.read(check.txn(request))
    request.success[0].range.range_end = b"l"
    with pytest.raises(ResultTooLarge, match="64 MiB"):
        store.read(check.txn(request))
    assert engine.looks <= 2 * (MAX_TXN_BYTES // SIZE + 2) < 2 * VERSIONS


def test_a_transaction_that_lacks_row_after_row_asks_the_engine_once_for_each(deep: tuple[Store, Counting]) -> None:
    """Begun anew each time, it had all that came before copied again: 20 s of each replica for 1,000 of 60 KB."""
    store, engine = deep
    request = kv_pb2.TxnRequest()
    request.success.add(range=kv_pb2.RangeRequest(key=b"k", revision=VERSIONS - 50))
    engine.asked = 0
    (found,) = read(store, request)[0].results
    assert isinstance(found, RangeResult)
    assert found.kvs[0].mod_revision == VERSIONS - 50
    assert engine.asked <= 3 * 53


WIDE, LONG = 12, 60
"""Keys, and versions of each, on the disk only."""


@pytest.fixture
def many() -> tuple[Store, Counting]:
    engine = Counting()
    engine.cold = False
    store, _ = fresh(engine=engine)
    log = Log()
    for version in range(LONG):
        run(store, log, *(put(b"m%02d" % key, b"%d" % version) for key in range(WIDE)))
    engine.cold, engine.looks = True, 0
    return reopen(engine, Limits(cache_bytes=0)), engine


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Rows of the history that are looked up, in memory or on loan."""
    looks: list[bytes] = []
    get = EngineSource.get

    def noted(source: EngineSource, row: bytes) -> bytes | None:
        if len(row) == 25:
            looks.append(row)
        return get(source, row)

    monkeypatch.setattr(EngineSource, "get", noted)
    return looks


def values(result: TxnResult) -> list[bytes]:
    return [kv.value for one in result.results if isinstance(one, RangeResult) for kv in one.kvs]


def old_reads(*, ranged: bool) -> kv_pb2.TxnRequest:
    """All keys as they were when each had one version, by themselves or as a range."""
    request = kv_pb2.TxnRequest()
    if ranged:
        request.success.add(range=kv_pb2.RangeRequest(key=b"m", range_end=b"n", revision=WIDE + 1))
    else:
        for key in range(WIDE):
            request.success.add(range=kv_pb2.RangeRequest(key=b"m%02d" % key, revision=WIDE + 1))
    return request


def test_a_transaction_over_many_long_histories_looks_once_at_each_row(
    many: tuple[Store, Counting], looks: list[bytes]
) -> None:
    """It began anew for each row that it lacked, and followed all histories from their ends again: of 40 keys with
    1,000 versions each that took half an hour."""
    store, _ = many
    found, held = read(store, old_reads(ranged=False), Findings())
    assert values(found) == [b"0"] * WIDE
    assert len(looks) <= 2 * WIDE * LONG
    assert len(held) <= WIDE * (LONG + 2)


@pytest.mark.parametrize("ranged", [False, True])
def test_a_transaction_that_writes_looks_once_at_each_row_of_many_histories(
    many: tuple[Store, Counting], looks: list[bytes], ranged: bool
) -> None:
    """All that came behind it in its shard waited, on each replica."""
    store, _ = many
    request = old_reads(ranged=ranged)
    request.success.add(put=kv_pb2.TxnPut(key=b"done"))
    answer, fetches = apply(store, request)
    assert isinstance(answer.result, TxnResult)
    assert values(answer.result) == [b"0"] * WIDE
    assert len(looks) <= 2 * WIDE * LONG
    assert fetches <= 2 * LONG


def test_what_a_transaction_may_look_at_is_the_same_whether_it_lacked_rows(deep: tuple[Store, Counting]) -> None:
    """Replicas that have other rows in memory answer alike, also where it goes beyond the bound in bytes."""
    answers = []
    for cold in (False, True):
        store, engine = deep
        engine.cold = cold
        request = kv_pb2.TxnRequest()
        for revision in (VERSIONS - 100, VERSIONS - 200, OLD):
            request.success.add(range=kv_pb2.RangeRequest(key=b"k", revision=revision, keys_only=True))
        answer, _ = apply(store, request)
        answers.append((answer.reason, answer.message, answer.result))
    assert answers[0][0] == Reason.RESULT_TOO_LARGE
    assert answers[0] == answers[1]

"""What commands do is the same on every replica, however far the physical deletion behind a compaction has come there,
also where they come to their bounds (S22, S28)."""

from __future__ import annotations

from random import Random

import pytest

from nebuladb.kv import txn as txn_module
from nebuladb.kv.answer import TxnResult
from nebuladb.kv.command import Command
from nebuladb.kv.limits import Limits
from nebuladb.kv.store import Store
from nebuladb.kv.txn import Budget
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.kv.helpers import Log, compact, delete, finish, fresh, put, run, state_hash, txn

KEYS = [b"a", b"a\0", b"b", b"c", b"cc" * 1000, b"d", b"e", b"\xff", b"\xff\xff"]
ENDS = [b"", b"\0", b"b", b"d", b"\xff"]
RESULTS = [kv_pb2.Compare.EQUAL, kv_pb2.Compare.GREATER, kv_pb2.Compare.LESS, kv_pb2.Compare.NOT_EQUAL]
ROWS = 9
"""That a transaction may look at here."""


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txn_module, "Budget", lambda: Budget(ROWS, 100_000))
    monkeypatch.setattr(txn_module, "MAX_RESULT_ROWS", 6)
    monkeypatch.setattr(txn_module, "MAX_TXN_BYTES", 6_000)


def of(*operations: kv_pb2.Operation, compare: kv_pb2.Compare | None = None) -> Command:
    return txn(kv_pb2.TxnRequest(compare=[compare] if compare else [], success=operations))


def command(random: Random, store: Store) -> Command:
    key, end = random.choice(KEYS), random.choice(ENDS)
    kind = random.randrange(10)
    if kind < 3:
        return put(key, bytes(random.choice([0, 0, 2000])))
    if kind < 5:
        return delete(key)
    if kind == 5:
        return delete(key, end, prev_kv=True)
    if kind < 8:
        return compact(store.revision - random.choice([0, 0, 1, 3]))
    asked = kv_pb2.RangeRequest(
        key=key, range_end=end, limit=random.choice([0, 1, 3]), count_only=random.random() < 0.3
    )
    compare = kv_pb2.Compare(key=random.choice(KEYS), range_end=random.choice(ENDS), result=random.choice(RESULTS))
    return of(
        kv_pb2.Operation(put=kv_pb2.TxnPut(key=random.choice(KEYS))),
        kv_pb2.Operation(range=asked),
        compare=compare if kind == 9 else None,
    )


@pytest.mark.parametrize("seed", range(150))
def test_answers_and_hashes_are_equal_at_any_pace(seed: int) -> None:
    random = Random(seed)
    (quick, _), (slow, _) = fresh(), fresh(Limits(dead_rows=random.choice([0, 1, 3, 4096])))
    one, other = Log(), Log()
    for _ in range(random.randrange(5, 40)):
        commands = [command(random, quick) for _ in range(random.randrange(1, 4))]
        assert [answer._replace(message="") for answer in run(quick, one, *commands)] == [
            answer._replace(message="") for answer in run(slow, other, *commands)
        ]
        finish(quick)
        for _ in range(random.randrange(2)):
            slow.background(1)
    assert state_hash(quick, one) == state_hash(slow, other)


def test_what_a_compaction_is_about_to_delete_counts_for_nothing() -> None:
    for done in (True, False):
        store, _ = fresh()
        log = Log()
        run(store, log, *(put(b"k%02d" % number) for number in range(ROWS + 1)))
        run(store, log, *(delete(b"k%02d" % number) for number in range(ROWS + 1)), put(b"z"))
        run(store, log, compact(store.revision))
        if done:
            finish(store)
        asked = kv_pb2.Operation(range=kv_pb2.RangeRequest(key=b"k", range_end=b"l"))
        answers = run(store, log, of(kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"x")), asked))
        assert isinstance(answers[0].result, TxnResult)
        assert store.get(b"x") is not None

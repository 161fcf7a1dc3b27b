"""Answers with nested transactions, as sessions keep them (S20)."""

from __future__ import annotations

from functools import reduce

import pytest

from nebuladb.errors import Corruption
from nebuladb.kv import answer_codec
from nebuladb.kv.answer import Answer, DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from nebuladb.kv.limits import MAX_TXN_DEPTH
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.kv.helpers import Log, fresh, open_session, run, txn

NESTED = """
01 0000000000000009 0000 0000000000000000
04 01 00000003
  01 00
  04 00 00000002
    02 0000000000000001 00000000
    04 01 00000000
  03 0000000000000005 01 00000001
    00000001 0000000000000002 0000000000000003 0000000000000004 fffffffffffffffe 00000002 6b 7631
"""


def test_golden_answer_of_a_nested_transaction() -> None:
    """docs/formats.md: Answer."""
    inner = TxnResult(succeeded=False, results=(DeleteResult(1), TxnResult(succeeded=True, results=())))
    ranged = RangeResult((KeyValue(b"k", 2, 3, 4, -2, b"v1"),), 5, more=True)
    answer = Answer(9, TxnResult(succeeded=True, results=(PutResult(), inner, ranged)))
    data = bytes.fromhex("".join(NESTED.split()))
    assert answer_codec.encode(answer) == data
    assert answer_codec.decode(data) == answer
    for end in range(len(data)):
        with pytest.raises(Corruption):
            answer_codec.decode(data[:end])


def test_what_is_nested_deeper_than_a_transaction_may_be_is_damage() -> None:
    """Bytes from a disk may say anything; to read them takes a bounded stack."""

    def deep(levels: int) -> bytes:
        result = reduce(
            lambda inner, _: TxnResult(succeeded=True, results=(inner,)),
            range(levels),
            TxnResult(succeeded=True, results=()),
        )
        return answer_codec.encode(Answer(2, result))

    assert isinstance(answer_codec.decode(deep(MAX_TXN_DEPTH)).result, TxnResult)
    for levels in (MAX_TXN_DEPTH + 1, 300):
        with pytest.raises(Corruption):
            answer_codec.decode(deep(levels))


def test_a_repeated_request_gets_the_nested_answer_of_the_first() -> None:
    store, log = fresh()[0], Log()
    run(store, log, open_session())
    session = 1 << 16
    put = kv_pb2.Operation(put=kv_pb2.TxnPut(key=b"k", prev_kv=True))
    nested = kv_pb2.Operation(txn=kv_pb2.NestedTxn(success=[put]))
    command = txn(kv_pb2.TxnRequest(success=[nested]), session=session, sequence=1, lowest=1)
    [first], [again] = run(store, log, command), run(store, log, command)
    assert first == again
    assert first.revision == store.revision == 2

"""etcd's transactions as the bytes of ours: nothing is lost on the way."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from nebuladb.api.etcd import txn
from nebuladb.kv import check
from nebuladb.kv.branches import Branches
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2

RENAMED: Final = {"order": "sort_order", "target": "sort_target"}
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
KEYS = st.binary(min_size=1, max_size=200)
ENDS = st.binary(max_size=200)
RANGES = st.builds(
    pb.RangeRequest,
    key=KEYS, range_end=ENDS, limit=INT64, revision=INT64, keys_only=st.booleans(), count_only=st.booleans(),
    sort_order=st.integers(0, 2), sort_target=st.integers(0, 4), serializable=st.booleans(), min_mod_revision=INT64,
    max_mod_revision=INT64, min_create_revision=INT64, max_create_revision=INT64,
)  # fmt: skip
PUTS = st.one_of(
    st.builds(pb.PutRequest, key=KEYS, value=ENDS, lease=INT64, prev_kv=st.booleans()),
    st.builds(pb.PutRequest, key=KEYS, ignore_value=st.booleans(), ignore_lease=st.booleans()),
)
DELETES = st.builds(pb.DeleteRangeRequest, key=KEYS, range_end=ENDS, prev_kv=st.booleans())
PLAIN = st.one_of(
    st.builds(lambda asked: pb.RequestOp(request_range=asked), RANGES),
    st.builds(lambda asked: pb.RequestOp(request_put=asked), PUTS),
    st.builds(lambda asked: pb.RequestOp(request_delete_range=asked), DELETES),
)
OPERANDS = st.one_of(
    st.builds(lambda number: {"version": number, "target": 0}, INT64),
    st.builds(lambda number: {"create_revision": number, "target": 1}, INT64),
    st.builds(lambda number: {"mod_revision": number, "target": 2}, INT64),
    st.builds(lambda value: {"value": value, "target": 3}, ENDS),
    st.builds(lambda number: {"lease": number, "target": 4}, INT64),
)
COMPARES = st.builds(
    lambda key, end, result, operand: pb.Compare(key=key, range_end=end, result=result, **operand),
    KEYS, ENDS, st.integers(0, 3), OPERANDS,
)  # fmt: skip


def transactions(operations: st.SearchStrategy[pb.RequestOp]) -> st.SearchStrategy[pb.TxnRequest]:
    """One operation a branch at most, so that no key is written twice."""
    branch = st.lists(operations, max_size=1)
    return st.builds(pb.TxnRequest, compare=st.lists(COMPARES, max_size=2), success=branch, failure=branch)


NESTED = st.builds(lambda asked: pb.RequestOp(request_txn=asked), transactions(PLAIN))


@given(transactions(st.one_of(PLAIN, NESTED)))
def test_all_fields_come_through(request: pb.TxnRequest) -> None:
    theirs = txn.taken_apart(request)
    same(theirs, check.txn(kv_pb2.TxnRequest.FromString(txn.body(theirs))))


def same(theirs: Branches, ours: Branches) -> None:
    for one, other in zip(theirs.compares, ours.compares, strict=True):
        operand = getattr(one, one.WhichOneof("target_union"))
        assert (one.key, one.range_end, one.result, one.target, operand) == (
            other.key, other.range_end, other.result, other.target, other.value if other.target == 3 else other.number,
        )  # fmt: skip
    for branch, our_branch in zip(theirs[1:], ours[1:], strict=True):
        for (which, asked), (our_which, our_asked) in zip(branch, our_branch, strict=True):
            assert which == our_which
            if which == "txn":
                same(asked, our_asked)
            else:
                assert [getattr(asked, RENAMED.get(name, name)) for name in names(our_asked)] == [
                    getattr(our_asked, name) for name in names(our_asked)
                ]


def names(message: Any) -> list[str]:
    return [field.name for field in message.DESCRIPTOR.fields]

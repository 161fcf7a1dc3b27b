from __future__ import annotations

import grpc
import grpc.aio
import pytest

from nebuladb import errors
from nebuladb.client.errors import CLASSES, failure_of
from nebuladb.errors import DETAIL_TRAILER, NebulaError, Outcome, Reason
from nebuladb.pb.nebula.v1 import common_pb2


def _status(code: grpc.StatusCode, text: str = "words", detail: bytes | None = None) -> grpc.aio.AioRpcError:
    trailer = grpc.aio.Metadata() if detail is None else grpc.aio.Metadata((DETAIL_TRAILER, detail))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailer, text)


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("outcome", Outcome)
def test_every_reason_comes_back(reason: Reason, outcome: Outcome) -> None:
    detail = common_pb2.ErrorDetail(
        reason=reason, outcome=common_pb2.Outcome.ValueType(outcome), retryable=True, leader_address="b:1"
    )
    failure = failure_of(_status(grpc.StatusCode.ABORTED, "why", detail.SerializeToString()), "a:1", writes=True)
    assert type(failure.error) is CLASSES.get(reason, NebulaError)
    assert (failure.error.outcome, failure.retryable, failure.leader_address) == (outcome, True, "b:1")
    assert failure.error.message == "why"
    assert not failure.lost


def test_attributes_come_back() -> None:
    detail = common_pb2.ErrorDetail(reason=Reason.COMPACTED, outcome=common_pb2.FAILED, compact_revision=9)
    found = failure_of(_status(grpc.StatusCode.OUT_OF_RANGE, "", detail.SerializeToString()), "a:1", writes=False).error
    assert isinstance(found, errors.Compacted)
    assert found.floor == 9
    detail = common_pb2.ErrorDetail(reason=Reason.NOT_LEADER, leader_node=4)
    found = failure_of(_status(grpc.StatusCode.UNAVAILABLE, "", detail.SerializeToString()), "a:1", writes=False).error
    assert isinstance(found, errors.NotLeader)
    assert found.leader == 4
    detail = common_pb2.ErrorDetail(
        reason=Reason.WRONG_EPOCH, descriptor=common_pb2.ShardDescriptor(group=2, epoch=8), retryable=True
    )
    found = failure_of(_status(grpc.StatusCode.UNAVAILABLE, "", detail.SerializeToString()), "a:1", writes=False).error
    assert isinstance(found, errors.WrongEpoch)
    assert found.epoch == 8


def test_a_server_that_states_no_outcome_promises_nothing() -> None:
    detail = common_pb2.ErrorDetail(reason=4711).SerializeToString()
    failure = failure_of(_status(grpc.StatusCode.INTERNAL, "", detail), "a:1", writes=True)
    assert (type(failure.error), failure.error.outcome) == (NebulaError, Outcome.UNKNOWN)
    assert "INTERNAL" in failure.error.message


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c not in (grpc.StatusCode.OK,)])
def test_a_write_without_an_answer_is_unknown(code: grpc.StatusCode) -> None:
    failure = failure_of(_status(code), "a:1", writes=True)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        assert failure.error.outcome is Outcome.FAILED
    else:
        assert isinstance(failure.error, errors.UnknownOutcome)
    assert failure.retryable is failure.strange is (code is grpc.StatusCode.UNIMPLEMENTED)


def test_a_deadline_is_not_called_a_lost_node_and_a_session_needs_no_advice_to_use_one() -> None:
    late = _status(grpc.StatusCode.DEADLINE_EXCEEDED)
    said = [failure_of(late, "a:1", writes=True, once=once).error.message for once in (False, True)]
    head = "a:1 gave no answer in time: the write may or may not take effect; read before you write again"
    assert said == [f"{head}, or use a session", head]


def test_a_read_without_an_answer_may_want_a_leader() -> None:
    """A scan where there was none was told of a node that gave no answer, which was well."""
    late = failure_of(_status(grpc.StatusCode.DEADLINE_EXCEEDED), "a:1", writes=False)
    assert "knows no leader" in late.error.message


@pytest.mark.parametrize(
    ("code", "text", "kind", "retryable", "lost"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", errors.Unavailable, True, True),
        (grpc.StatusCode.CANCELLED, "", errors.Unavailable, True, True),
        (grpc.StatusCode.INTERNAL, "RST_STREAM", errors.Unavailable, True, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", errors.DeadlineExceeded, True, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", errors.TooManyRequests, True, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", errors.ResultTooLarge, False, False),
        (grpc.StatusCode.UNKNOWN, "Unexpected", NebulaError, False, False),
        (grpc.StatusCode.UNIMPLEMENTED, "", NebulaError, True, True),
    ],
)
def test_a_read_without_an_answer(
    code: grpc.StatusCode, text: str, kind: type[NebulaError], retryable: bool, lost: bool
) -> None:
    failure = failure_of(_status(code, text), "a:1", writes=False)
    assert type(failure.error) is kind
    assert (failure.retryable, failure.lost) == (retryable, lost)


def test_a_damaged_trailer_is_no_answer() -> None:
    failure = failure_of(_status(grpc.StatusCode.UNAVAILABLE, "", b"\xff\xff"), "a:1", writes=True)
    assert isinstance(failure.error, errors.UnknownOutcome)


def test_who_asks_at_a_peer_address_is_told_that() -> None:
    failure = failure_of(_status(grpc.StatusCode.UNIMPLEMENTED, "unknown service nebula.v1.KV"), "a:1", writes=False)
    assert failure.error.message.startswith("a:1 doesn't know this request; is it a peer address")
    assert "(unknown service nebula.v1.KV)" in failure.error.message

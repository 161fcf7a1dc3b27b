"""The one place where a gRPC status becomes an exception of `nebuladb.errors`."""

from __future__ import annotations

from typing import Final, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from nebuladb.errors import (
    DETAIL_TRAILER,
    ClientClosed,
    Compacted,
    DeadlineExceeded,
    NebulaError,
    NotLeader,
    Outcome,
    Reason,
    ResultTooLarge,
    TooManyRequests,
    Unavailable,
    UnknownOutcome,
    WrongEpoch,
)
from nebuladb.pb.nebula.v1 import common_pb2
from nebuladb.rpc.framing import LARGER

TRANSPORT_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,  # a reset stream
    }
)
"""What gRPC says by itself of a call that it lost. Our servers' own errors carry the trailer."""


FORKED: Final = "this client is another process's; make one after the fork"
PICKLED: Final = "a client can't be sent to another process; make one there"
OTHER_LOOP: Final = "this client is another event loop's; make one in each loop"


class Failure(NamedTuple):
    """Why one attempt failed. ``error.outcome`` says whether the request may have taken effect."""

    error: NebulaError
    retryable: bool
    """It may succeed later, or elsewhere."""
    lost: bool = False
    """Nobody answered: the node or the way to it is in trouble."""
    retry_after: float = 0.0
    """Seconds before which another attempt makes no sense, if the server said so."""
    leader_address: str = ""
    """Who should be asked instead, if the server said so."""
    strange: bool = False
    """Whoever answered doesn't know the request, and so did nothing; another may."""


def _classes() -> dict[Reason, type[NebulaError]]:
    """The class of each reason: the most general one that bears it."""
    found: dict[Reason, type[NebulaError]] = {}
    level: list[type[NebulaError]] = [NebulaError]
    while level:
        for kind in level:
            found.setdefault(kind.reason, kind)
        level = [child for kind in level for child in kind.__subclasses__()]
    return found


CLASSES: Final = _classes()


def not_sent(address: str) -> Failure:
    """No connection could be made, hence nothing was sent."""
    return Failure(Unavailable(f"{address} can't be reached; is a node serving there?"), retryable=True, lost=True)


def silent(address: str) -> Failure:
    """What was asked for didn't come in time. Only for what writes nothing."""
    # A scan names no deadline: a node that finds no leader for it says so too late.
    text = f"{address} gave no answer in time: it hangs, or knows no leader; see `nebula-cli shard list`"
    return Failure(DeadlineExceeded(text), retryable=True, lost=True)


def closed(why: str = "") -> Failure:
    """The client was closed before anything was sent, or what was asked for would have changed nothing. `why`: it is
    not closed, but can't be used by who asks."""
    return Failure(ClientClosed(why), retryable=False)


def closed_amid(address: str, *, writes: bool) -> Failure:
    """The client was closed while an answer was waited for."""
    if not writes:
        return closed()
    text = f"the client was closed before {address} answered: the write may or may not take effect"
    return Failure(UnknownOutcome(text), retryable=False)


def failure_of(
    status: grpc.aio.AioRpcError, address: str, *, writes: bool, once: bool = False, again: bool = False
) -> Failure:
    """Of a call that had been sent. `writes`: if nobody says what became of it, it may have taken effect. `once`: it
    has a session. `again`: a repeat does no harm."""
    detail = _detail(status)
    if detail is not None:
        return _answered(status, detail, address)
    code, text = status.code(), status.details() or "no details"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Failure(
            NebulaError(
                f"{address} doesn't know this request; is it a peer address, not a client address, or an older node? "
                f"({text})"
            ),
            retryable=True,
            lost=True,
            strange=True,
        )
    if writes:
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        what = f"{address} gave no answer in time" if late else f"{address} was lost before it answered ({text})"
        advice = "read before you write again" + ("" if once else ", or use a session")
        advice = "repeat the request" if again else advice
        error = UnknownOutcome(f"{what}: the write may or may not take effect; {advice}")
        return Failure(error, retryable=False, lost=code in TRANSPORT_CODES)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return silent(address)
    if code in TRANSPORT_CODES:
        return Failure(Unavailable(f"{address} was lost before it answered ({text})"), retryable=True, lost=True)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and LARGER not in text:
        return Failure(TooManyRequests(f"{address} is overloaded ({text}); try again later"), retryable=True)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Failure(ResultTooLarge(f"{text}; ask for less with a limit, or scan"), retryable=False)
    return Failure(NebulaError(f"{address} failed: {code.name}, {text}"), retryable=False)


def _detail(status: grpc.aio.AioRpcError) -> common_pb2.ErrorDetail | None:
    for key, value in status.trailing_metadata() or ():
        if key == DETAIL_TRAILER and isinstance(value, bytes):
            try:
                return common_pb2.ErrorDetail.FromString(value)
            except DecodeError:
                return None
    return None


def _answered(status: grpc.aio.AioRpcError, detail: common_pb2.ErrorDetail, address: str) -> Failure:
    error = _rebuild(status.details() or f"{address} answered {status.code().name}", detail)
    # A server that states no outcome has promised nothing.
    error.outcome = Outcome.FAILED if detail.outcome == common_pb2.FAILED else Outcome.UNKNOWN
    later = detail.retry_after_ms / 1000
    return Failure(error, detail.retryable, retry_after=later, leader_address=detail.leader_address)


def _rebuild(message: str, detail: common_pb2.ErrorDetail) -> NebulaError:
    """The same class with the same attributes; of a reason from the future, the root."""
    try:
        kind = CLASSES.get(Reason(detail.reason), NebulaError)
    except ValueError:
        kind = NebulaError
    if issubclass(kind, NotLeader):
        return kind(message, detail.leader_node)
    if issubclass(kind, WrongEpoch):
        return kind(message, detail.descriptor.epoch)
    if issubclass(kind, Compacted):
        return kind(message, detail.compact_revision)
    return kind(message)

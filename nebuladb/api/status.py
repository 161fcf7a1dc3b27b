"""The one place where an error becomes a gRPC status, and a stored answer's refusal an error (house rule 5)."""

from __future__ import annotations

from typing import Any, Final

import grpc

from nebuladb import errors
from nebuladb.errors import NebulaError
from nebuladb.kv.answer import Answer
from nebuladb.node.meta import Meta
from nebuladb.pb.nebula.v1 import common_pb2 as pb
from nebuladb.shard import Descriptor

MAX_TEXT: Final = 1_000
"""Letters of a status' text, which travels as metadata: a name of a megabyte that is repeated in a refusal would make
of it a broken call, without details."""
_CLASSES: Final = {
    int(error.reason): error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, NebulaError) and error not in (NebulaError, errors.StoreError)
}


def refusal(answer: Answer) -> NebulaError:
    """The error that a refused command's answer stands for."""
    kind = _CLASSES.get(answer.reason, NebulaError)
    error = kind(answer.message)
    if isinstance(error, errors.Compacted):
        error.floor = answer.detail
    elif isinstance(error, errors.WrongEpoch):
        error.epoch = answer.detail
    return error


def descriptor_message(descriptor: Descriptor) -> pb.ShardDescriptor:
    """A descriptor as clients see it."""
    return pb.ShardDescriptor(
        group=descriptor.group,
        keyspace=descriptor.keyspace,
        epoch=descriptor.epoch,
        start_key=descriptor.start,
        end_key=descriptor.end,
        start_slot=descriptor.slots[0],
        end_slot=descriptor.slots[1],
        replicas=[pb.Replica(replica_id=replica, node_id=node) for replica, node in descriptor.replicas],
    )


def detail(error: NebulaError, meta: Meta, leader: int, descriptor: Descriptor | None) -> pb.ErrorDetail:
    """What a client learns besides code and text: failed or unknown, who leads, what is owned where."""
    message = pb.ErrorDetail(
        reason=error.reason,
        outcome=pb.Outcome.ValueType(error.outcome),
        retryable=error.retryable,
        leader_node=leader,
        leader_address=meta.client_address(leader),
        retry_after_ms=error.retry_after,
    )
    if isinstance(error, errors.Compacted):
        message.compact_revision = error.floor
    if isinstance(error, errors.WrongEpoch) and descriptor is not None:
        message.descriptor.CopyFrom(descriptor_message(descriptor))
    return message


async def abort(context: Any, error: NebulaError, message: pb.ErrorDetail) -> None:
    """End the call with the error's status. Does not return."""
    metadata = ((errors.DETAIL_TRAILER, message.SerializeToString()),)
    await context.abort(grpc.StatusCode[error.code], error.message[:MAX_TEXT], metadata)

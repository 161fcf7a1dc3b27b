"""The steps that operations are made of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import Final

from google.protobuf.message import Message

from nebuladb.pb.etcd import kv_pb2, lease_pb2, maintenance_pb2, watch_pb2
from tests.etcd.diff.values import World

ANSWERS: Final[dict[str, type[Message]]] = {
    "KV/Range": kv_pb2.RangeResponse,
    "KV/Put": kv_pb2.PutResponse,
    "KV/DeleteRange": kv_pb2.DeleteRangeResponse,
    "KV/Txn": kv_pb2.TxnResponse,
    "KV/Compact": kv_pb2.CompactionResponse,
    "Lease/LeaseGrant": lease_pb2.LeaseGrantResponse,
    "Lease/LeaseRevoke": lease_pb2.LeaseRevokeResponse,
    "Lease/LeaseTimeToLive": lease_pb2.LeaseTimeToLiveResponse,
    "Lease/LeaseLeases": lease_pb2.LeaseLeasesResponse,
    "Maintenance/Alarm": maintenance_pb2.AlarmResponse,
    "Maintenance/Status": maintenance_pb2.StatusResponse,
    "Maintenance/Defragment": maintenance_pb2.DefragmentResponse,
    "Maintenance/Hash": maintenance_pb2.HashResponse,
    "Maintenance/HashKV": maintenance_pb2.HashKVResponse,
    "Maintenance/MoveLeader": maintenance_pb2.MoveLeaderResponse,
}
"""Method → what it answers with."""


@dataclass(frozen=True)
class Call:
    """A unary call."""

    method: str
    request: Message


@dataclass(frozen=True)
class KeepAlive:
    """One message on the stream of renewals, and its answer."""

    lease: int


@dataclass(frozen=True)
class Snapshot:
    """A whole snapshot: what is compared is its form (etcd 54)."""


@dataclass(frozen=True)
class OpenWatch:
    """A new watch stream; its first watcher is the witness, which sees every change."""

    stream: int


@dataclass(frozen=True)
class CloseWatch:
    """The end of a watch stream."""

    stream: int


@dataclass(frozen=True)
class WatchStep:
    """A message on a watch stream. `answered`: a creation, which is always answered. `late`: a creation in the past."""

    stream: int
    request: watch_pb2.WatchRequest
    answered: bool = False
    late: bool = False


@dataclass(frozen=True)
class Settle:
    """Wait until all that is due on the watch streams has come, and compare it."""


@dataclass(frozen=True)
class Failure:
    """An error, as a client sees it."""

    code: str
    text: str


Step = Call | KeepAlive | Snapshot | OpenWatch | CloseWatch | WatchStep | Settle
Answer = Message | Failure | None
Operation = Generator[Step, Answer, None]
Draw = Callable[[Random, World], Operation]

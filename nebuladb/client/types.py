"""What the client answers: plain values, so that no caller depends on the wire's messages."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from nebuladb.pb.nebula.v1 import common_pb2, kv_pb2

TO_THE_END: Final = b"\0"
"""As a range's end: every key from its start on."""


class KeyValue(NamedTuple):
    """A key at a revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class PutResult(NamedTuple):
    """`previous` only if it was asked for and existed."""

    revision: int
    previous: KeyValue | None = None


class DeleteResult(NamedTuple):
    """How many keys went, and their last values if asked for."""

    revision: int
    deleted: int
    previous: tuple[KeyValue, ...] = ()


class RangeResult(NamedTuple):
    """Of a transaction's read. `total` counts the whole range, whatever the limit; `more`: the limit cut something."""

    kvs: tuple[KeyValue, ...]
    total: int
    more: bool


class TxnResult(NamedTuple):
    """Which branch ran (`succeeded`: the first), and what each of its operations gave."""

    revision: int
    succeeded: bool
    results: tuple[PutResult | DeleteResult | RangeResult, ...]


class BatchResult(NamedTuple):
    """Shard → its revision after the last part of the batch that it holds."""

    revisions: dict[int, int]


class CasResult(NamedTuple):
    """`current` is the key as it was found, if the comparison failed."""

    succeeded: bool
    revision: int
    current: KeyValue | None = None


class EventType(IntEnum):
    """As on the wire."""

    PUT = 0
    DELETE = 1


class Event(NamedTuple):
    """A change. Of a deletion, `kv` has only key and mod_revision."""

    type: EventType
    kv: KeyValue
    previous: KeyValue | None = None
    group: int = 0
    """The shard in which it happened; revisions of different shards can't be compared."""


class LeaseInfo(NamedTuple):
    """`ttl` seconds remain of `granted_ttl`."""

    id: int
    ttl: int
    granted_ttl: int
    keys: tuple[bytes, ...]


class StateHash(NamedTuple):
    """A node's hash of a shard's state at exactly that log index (S28)."""

    node_id: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on it
    hash: bytes


def key_value(message: common_pb2.KeyValue) -> KeyValue:
    """From the wire."""
    return KeyValue(
        message.key,
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def event(message: kv_pb2.Event, group: int) -> Event:
    """From the wire; it happened in shard `group`."""
    previous = key_value(message.prev_kv) if message.HasField("prev_kv") else None
    return Event(EventType(message.type), key_value(message.kv), previous, group)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,)) if head else TO_THE_END

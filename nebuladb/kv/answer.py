"""What the state machine answers: plain values, which ``api`` turns into messages and sessions keep as bytes."""

from __future__ import annotations

from typing import Final, NamedTuple


class KeyValue(NamedTuple):
    """A key at a revision."""

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    value: bytes


class PutResult(NamedTuple):
    """`previous` only if it was asked for and existed."""

    previous: KeyValue | None = None


NO_PREVIOUS: Final = PutResult()
"""That of nearly every put."""


class DeleteResult(NamedTuple):
    """How many keys went, and their last values if asked for."""

    deleted: int
    previous: tuple[KeyValue, ...] = ()


class RangeResult(NamedTuple):
    """`count` is the whole range's, whatever the limit; `more`: the limit cut something."""

    kvs: tuple[KeyValue, ...]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls on it
    more: bool


class TxnResult(NamedTuple):
    """Which branch ran and what its operations gave."""

    succeeded: bool
    results: tuple[OperationResult, ...]


OperationResult = PutResult | DeleteResult | RangeResult | TxnResult
"""Of one operation of a transaction; a `TxnResult` is a nested one's."""


class LeaseResult(NamedTuple):
    """Of a grant, a keep-alive (ttl 0: no such lease) or a revoke; `ttl` in seconds."""

    lease: int
    ttl: int


class SessionResult(NamedTuple):
    """The id of an opened session."""

    session: int


class HashResult(NamedTuple):
    """Where the hash that was asked for is taken: at this log index, on every replica (S28). Never recorded."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on it


Result = PutResult | DeleteResult | RangeResult | TxnResult | LeaseResult | SessionResult | HashResult | None


class Answer(NamedTuple):
    """The outcome of one command, the same on every replica."""

    revision: int
    """The shard's revision after it."""
    result: Result = None
    reason: int = 0
    """0, or a `nebuladb.errors.Reason`: refused, and nothing was changed."""
    detail: int = 0
    """What the error carries: the floor (COMPACTED), the epoch (WRONG_EPOCH)."""
    message: str = ""

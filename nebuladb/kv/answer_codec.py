"""Answers as bytes: what a session keeps (S20).

Our own encoding, since protobuf's bytes may differ from build to build (S22).
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final

from nebuladb.errors import Corruption, InvariantViolation
from nebuladb.kv.answer import (
    Answer,
    DeleteResult,
    HashResult,
    KeyValue,
    LeaseResult,
    OperationResult,
    PutResult,
    RangeResult,
    Result,
    SessionResult,
    TxnResult,
)
from nebuladb.kv.limits import MAX_TXN_DEPTH
from nebuladb.kv.rows import FORMAT

HEAD: Final = Struct(">BQHQ")
KEY_VALUE: Final = Struct(">IQQQqI")
RANGE: Final = Struct(">QBI")
DELETE: Final = Struct(">QI")
TXN: Final = Struct(">BI")
LEASE: Final = Struct(">qQ")
SESSION: Final = Struct(">Q")

NONE: Final = 0
PUT_RESULT: Final = 1
DELETE_RESULT: Final = 2
RANGE_RESULT: Final = 3
TXN_RESULT: Final = 4
LEASE_RESULT: Final = 5
SESSION_RESULT: Final = 6


def encode(answer: Answer) -> bytes:
    """The bytes of an answer, without its message: a text that differs from version to version may not be hashed."""
    parts = [HEAD.pack(FORMAT, answer.revision, answer.reason, answer.detail)]
    _result(parts, answer.result)
    return b"".join(parts)


def _result(parts: list[bytes], result: Result) -> None:
    match result:
        case None:
            parts.append(bytes((NONE,)))
        case PutResult(previous):
            parts.append(bytes((PUT_RESULT, previous is not None)))
            if previous is not None:
                _key_value(parts, previous)
        case DeleteResult(deleted, kvs):
            parts.append(bytes((DELETE_RESULT,)) + DELETE.pack(deleted, len(kvs)))
            for kv in kvs:
                _key_value(parts, kv)
        case RangeResult(kvs, count, more):
            parts.append(bytes((RANGE_RESULT,)) + RANGE.pack(count, more, len(kvs)))
            for kv in kvs:
                _key_value(parts, kv)
        case TxnResult(succeeded, results):
            parts.append(bytes((TXN_RESULT,)) + TXN.pack(succeeded, len(results)))
            for one in results:
                _result(parts, one)
        case LeaseResult(lease, ttl):
            parts.append(bytes((LEASE_RESULT,)) + LEASE.pack(lease, ttl))
        case SessionResult(session):
            parts.append(bytes((SESSION_RESULT,)) + SESSION.pack(session))
        case HashResult():
            raise InvariantViolation("an answer to HASH is not recorded")


def _key_value(parts: list[bytes], kv: KeyValue) -> None:
    head = KEY_VALUE.pack(len(kv.key), kv.create_revision, kv.mod_revision, kv.version, kv.lease, len(kv.value))
    parts += (head, kv.key, kv.value)


def decode(data: bytes) -> Answer:
    """The answer that `data` encodes, with an empty message. Raises `Corruption`."""
    reader = _Reader(data)
    version, revision, reason, detail = reader.numbers(HEAD)
    if version != FORMAT:
        raise Corruption(f"an answer of format {version}")
    result = reader.result()
    if reader.position != len(data):
        raise Corruption("an answer has bytes left over")
    return Answer(revision, result, reason, detail)


class _Reader:
    """Walks over an answer's bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def numbers(self, layout: Struct) -> tuple[int, ...]:
        try:
            numbers = layout.unpack_from(self.data, self.position)
        except error:
            raise Corruption("an answer is cut short") from None
        self.position += layout.size
        return numbers

    def take(self, size: int) -> bytes:
        piece = self.data[self.position : self.position + size]
        if len(piece) != size:
            raise Corruption("an answer is cut short")
        self.position += size
        return piece

    def result(self, depth: int = 0) -> Result:
        tag = self.take(1)[0]
        if tag == PUT_RESULT:
            return PutResult(self.key_value() if self.take(1)[0] else None)
        if tag == DELETE_RESULT:
            deleted, count = self.numbers(DELETE)
            return DeleteResult(deleted, self.key_values(count))
        if tag == RANGE_RESULT:
            whole, more, count = self.numbers(RANGE)
            return RangeResult(self.key_values(count), whole, bool(more))
        if tag == TXN_RESULT and depth <= MAX_TXN_DEPTH:
            succeeded, count = self.numbers(TXN)
            return TxnResult(bool(succeeded), tuple(self.operation(depth + 1) for _ in range(count)))
        if tag == LEASE_RESULT:
            return LeaseResult(*self.numbers(LEASE))
        if tag == SESSION_RESULT:
            return SessionResult(*self.numbers(SESSION))
        if tag == NONE:
            return None
        raise Corruption(f"an answer holds a result of kind {tag}")

    def operation(self, depth: int) -> OperationResult:
        result = self.result(depth)
        if isinstance(result, OperationResult):
            return result
        raise Corruption("an operation's result is of a kind that no operation has")

    def key_values(self, count: int) -> tuple[KeyValue, ...]:
        return tuple(self.key_value() for _ in range(count))

    def key_value(self) -> KeyValue:
        key_size, create, mod, version, lease, value_size = self.numbers(KEY_VALUE)
        return KeyValue(self.take(key_size), create, mod, version, lease, self.take(value_size))

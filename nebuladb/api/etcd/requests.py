"""KV's requests: what etcd refuses about them, in its order and its words, and what they are in ``nebula.v1``."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from nebuladb.api.etcd.errors import EtcdError
from nebuladb.errors import RequestTooLarge
from nebuladb.kv.limits import MAX_REQUEST_BYTES
from nebuladb.kv.selection import Selection
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2

MAX_RECEIVED_BYTES: Final = MAX_REQUEST_BYTES + (512 << 10)
"""What etcd takes off the wire; between this and the bound of a request the refusal is the request's (etcd 26)."""
ENTRY_BYTES: Final = 18
"""What etcd counts of a log entry's header into a request's size."""

_KEY, _VALUE = 0x0A, 0x12
_SHORT: Final = 0x80
"""Lengths below it take one byte."""

M = TypeVar("M", bound=Message)


def received(kind: type[M], raw: bytes, *, stream: bool = False) -> M:
    """A request's message; `stream`: of a method that has streams. Raises `EtcdError`."""
    if len(raw) > MAX_RECEIVED_BYTES:
        text = f"grpc: received message larger than max ({len(raw)} vs. {MAX_RECEIVED_BYTES})"
        raise EtcdError("RESOURCE_EXHAUSTED", text)
    try:
        return kind.FromString(raw)
    except DecodeError:
        what = "failed to unmarshal the received message" if stream else "error unmarshalling request"
        raise EtcdError("INTERNAL", f"grpc: {what}: unexpected EOF") from None


def check_size(raw: bytes) -> None:
    """The size of a request that goes into the log."""
    if len(raw) > MAX_REQUEST_BYTES - ENTRY_BYTES:
        raise RequestTooLarge


def check_key(key: bytes) -> None:
    """Of any request."""
    if not key:
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: key is not provided")


def check_put(request: pb.PutRequest) -> None:
    """A put, alone or in a transaction (etcd 11)."""
    check_key(request.key)
    if request.ignore_value and request.value:
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: value is provided")
    if request.ignore_lease and request.lease:
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: lease is provided")


def check_range(request: pb.RangeRequest) -> None:
    """A range, alone or in a transaction. (etcd 4; 3.5 lets a bad order pass, and dies of a bad target.)"""
    check_key(request.key)
    if not (0 <= request.sort_order <= pb.RangeRequest.DESCEND and 0 <= request.sort_target <= pb.RangeRequest.VALUE):
        raise EtcdError("INVALID_ARGUMENT", "etcdserver: invalid sort option")


def lone_key(raw: bytes) -> tuple[bytes, bool] | None:
    """The key of a Range that asks for one key and nothing else, and whether it is serializable; else None.

    What is read most is told by its bytes: a field of the key, and perhaps one that says serializable.
    """
    if len(raw) > 2 and raw[0] == _KEY and 0 < (size := raw[1]) < _SHORT:
        rest = len(raw) - 2 - size
        if rest == 0:
            return raw[2:], False
        if rest == 2 and raw.endswith(b"\x38\x01"):
            return raw[2:-2], True
    return None


def plain_put(raw: bytes) -> bytes | None:
    """The body of a Put that has a key and a value and nothing else, and a size that is allowed; None of any other.

    What is written most is told by its bytes: the fields of ``nebula.v1`` have the numbers that follow, so that the
    bytes are the client's but for two tags.
    """
    size = len(raw)
    if not 5 <= size <= MAX_REQUEST_BYTES - ENTRY_BYTES or raw[0] != _KEY or not 0 < raw[1] < _SHORT:
        return None
    tag = 2 + raw[1]
    if tag + 1 >= size or raw[tag] != _VALUE:
        return None
    length, start = raw[tag + 1], tag + 2
    if length >= _SHORT:
        shift, more = 7, length
        length &= 0x7F
        while more >= _SHORT:
            if start == size or shift > 21:
                return None
            more = raw[start]
            length |= (more & 0x7F) << shift
            shift += 7
            start += 1
    if start + length != size:
        return None
    return b"".join((b"\x12", raw[1:tag], b"\x1a", raw[tag + 1 :]))


def put_body(request: pb.PutRequest) -> bytes:
    """The body of any Put."""
    return kv_pb2.PutRequest(
        key=request.key,
        value=request.value,
        lease=request.lease,
        prev_kv=request.prev_kv,
        ignore_value=request.ignore_value,
        ignore_lease=request.ignore_lease,
    ).SerializeToString()


def selection(request: pb.RangeRequest) -> Selection:
    """What a Range asks for beyond its keys."""
    return Selection(
        request.limit,
        request.keys_only,
        request.count_only,
        request.sort_order,
        request.sort_target,
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    )

"""A call's status: trailers, percent-encoded messages, and what HTTP's own failures mean (gRPC over HTTP/2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import grpc
import grpc.aio

from nebuladb.errors import DETAIL_TRAILER, Reason, TooManyRequests
from nebuladb.pb.nebula.v1.common_pb2 import FAILED, ErrorDetail
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.metadata import Fields, Value, decode_metadata, encode_metadata

STATUS: Final = b"grpc-status"
MESSAGE: Final = b"grpc-message"

MAX_MESSAGE: Final = 4096
"""Bytes of an encoded grpc-message; the rest is cut off. A peer that bounds its header lists would drop it whole."""

CODES: Final[Mapping[bytes, grpc.StatusCode]] = {b"%d" % code.value[0]: code for code in grpc.StatusCode}
NUMBERS: Final[Mapping[grpc.StatusCode, bytes]] = {code: number for number, code in CODES.items()}

OK_TRAILERS: Final[Fields] = ((STATUS, b"0"),)
"""The same object each time, so that the header encoder knows it by identity."""

UNDONE: Final[tuple[tuple[str, bytes], ...]] = (
    (
        DETAIL_TRAILER,
        ErrorDetail(
            reason=Reason.TOO_MANY_REQUESTS, outcome=FAILED, retryable=True, retry_after_ms=TooManyRequests.retry_after
        ).SerializeToString(),
    ),
)
"""Metadata of a refusal for want of room, of a call that has not reached a handler: nothing was done, and later there
may be room. Without it a client must take a write's outcome for unknown."""

HTTP_CODES: Final[Mapping[bytes, grpc.StatusCode]] = {
    b"400": grpc.StatusCode.INTERNAL,
    b"401": grpc.StatusCode.UNAUTHENTICATED,
    b"403": grpc.StatusCode.PERMISSION_DENIED,
    b"404": grpc.StatusCode.UNIMPLEMENTED,
    b"429": grpc.StatusCode.UNAVAILABLE,
    b"502": grpc.StatusCode.UNAVAILABLE,
    b"503": grpc.StatusCode.UNAVAILABLE,
    b"504": grpc.StatusCode.UNAVAILABLE,
}
"""Of an answer that isn't gRPC's, by its ``:status``. Any other one is UNKNOWN."""

RESET_CODES: Final[Mapping[ErrorCode, grpc.StatusCode]] = {
    ErrorCode.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: grpc.StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: grpc.StatusCode.PERMISSION_DENIED,
}
"""Of a stream that was reset. Any other one is INTERNAL."""

_UNSAFE: Final = re.compile(rb"\A |[^\x20-\x24\x26-\x7e]| \Z")
"""Space too at either end: no header value may begin or end with it (RFC 9113, 8.2.1)."""
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class StatusError(Exception):
    """A call ends with this status. The rpc layers raise it to themselves; callers of the channel see `AioRpcError`."""

    def __init__(self, code: grpc.StatusCode, details: str = "", trailing: Iterable[tuple[str, Value]] = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.trailing = tuple(trailing)
        """Metadata to go with it."""


class Status(NamedTuple):
    """How a call ended, as its trailers said."""

    code: grpc.StatusCode
    details: str
    trailing: grpc.aio.Metadata


@lru_cache(maxsize=256)
def encode_message(text: str) -> bytes:
    """A ``grpc-message``: UTF-8 with everything but printable ASCII, and ``%``, as %XX. Cut after `MAX_MESSAGE`."""
    raw = text.encode("utf-8", "replace")
    encoded = _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], raw)
    if len(encoded) <= MAX_MESSAGE:
        return encoded
    cut = encoded[:MAX_MESSAGE]
    at = cut.rfind(b"%", -2)  # never in the midst of an escape
    return (cut if at < 0 else cut[:at]).rstrip(b" ")


def decode_message(value: bytes) -> str:
    """Its text. Never fails (the spec): what is no escape stays as it is, what is no UTF-8 is replaced."""
    if b"%" in value:
        value = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), value)
    return value.decode("utf-8", "replace")


def trailers(code: grpc.StatusCode, details: str = "", metadata: Iterable[tuple[str, Value]] | None = None) -> Fields:
    """Header fields of a call's end. Raises `MetadataError`."""
    if code is grpc.StatusCode.OK and not details and not metadata:
        return OK_TRAILERS
    fields: Fields = ((STATUS, NUMBERS[code]),)
    if details:
        fields += ((MESSAGE, encode_message(details)),)
    return fields + encode_metadata(metadata) if metadata else fields


def parse_trailers(fields: Fields) -> Status:
    """The status in the last headers of an answer; without a ``grpc-status`` by HTTP's (only for trailers-only).

    Raises `MetadataError` for broken binary metadata.
    """
    number = message = http = None
    for name, value in fields:
        if name == STATUS:
            number = value
        elif name == MESSAGE:
            message = value
        elif name == b":status":
            http = value
    trailing = decode_metadata(fields)
    if number is not None:
        code = CODES.get(number, grpc.StatusCode.UNKNOWN)
        text = decode_message(message) if message is not None else ""
        return Status(code, text if number in CODES else f"grpc-status {number[:16]!r} {text}".rstrip(), trailing)
    if http is not None and http != b"200":
        code = HTTP_CODES.get(http, grpc.StatusCode.UNKNOWN)
        return Status(code, f"the server answered HTTP {http.decode('latin-1')}, not gRPC", trailing)
    return Status(grpc.StatusCode.UNKNOWN, "the server ended the call without a status", trailing)


def reset_status(code: ErrorCode) -> grpc.StatusCode:
    """The status of a stream that its server reset."""
    return RESET_CODES.get(code, grpc.StatusCode.INTERNAL)

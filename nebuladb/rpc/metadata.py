"""Metadata and timeouts, between Python's values and header fields (gRPC over HTTP/2, "Custom-Metadata", "Timeout")."""

from __future__ import annotations

import binascii
import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import grpc.aio

Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields as they go over the wire: lower-case names, pseudo headers first."""

Value = str | bytes
"""Of one metadatum: bytes where the name ends in ``-bin``, else text."""

RESERVED: Final = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "grpc-accept-encoding",
        "grpc-encoding",
        "grpc-message",
        "grpc-message-type",
        "grpc-status",
        "grpc-timeout",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""Names that the transport writes itself, or that HTTP/2 forbids: nobody may send them as metadata."""

HIDDEN: Final = frozenset(name.encode() for name in RESERVED - {"user-agent"})
"""Names that are no metadata when they come in. Who called (``user-agent``) is shown."""

BINARY: Final = "-bin"
MAX_TIMEOUT_DIGITS: Final = 8
LONGEST_TIMEOUT: Final = 99_999_999 * 3600.0
"""Seconds: the largest number of the largest unit. Longer ones are sent as this one."""

_NAME: Final = re.compile(r"[0-9a-z_.\-]+")
_TEXT: Final = re.compile(r"[\x20-\x7e]*")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NANOS: Final = ((b"n", 1), (b"u", 10**3), (b"m", 10**6), (b"S", 10**9), (b"M", 60 * 10**9), (b"H", 3600 * 10**9))


class MetadataError(ValueError):
    """A name or value that can't be sent, or bytes that are no metadata or timeout."""


def encode_metadata(metadata: Iterable[tuple[str, Value]]) -> Fields:
    """Header fields of an application's metadata. Raises `MetadataError`.

    A space at a value's end would be stripped on the way (RFC 9110, 5.5), so it is refused rather than changed.
    """
    return tuple([_encoded(name, value) for name, value in metadata])


def _encoded(name: str, value: Value) -> tuple[bytes, bytes]:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise MetadataError(f"{name!r} is no metadata name: lower-case letters, digits, '_', '-' and '.' only")
    if name in RESERVED:
        raise MetadataError(f"{name!r} is the transport's own header")
    if name.endswith(BINARY):
        if not isinstance(value, bytes | bytearray | memoryview):
            raise MetadataError(f"{name!r} ends in '-bin': its value must be bytes")
        return name.encode(), binascii.b2a_base64(value, newline=False).rstrip(b"=")
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str) or _TEXT.fullmatch(value) is None or value != value.strip(" "):
        raise MetadataError(f"the value of {name!r} must be printable ASCII; name it '...-bin' to send bytes")
    return name.encode(), value.encode()


def decode_metadata(fields: Iterable[tuple[bytes, bytes]]) -> grpc.aio.Metadata:
    """The application's part of a header list; pseudo headers and the transport's own are left out.

    Raises `MetadataError` for a binary value that is no base64.
    """
    found = grpc.aio.Metadata()
    for name, value in fields:
        if name in HIDDEN or name.startswith(b":"):
            continue
        key = name.decode("latin-1")
        if not key.endswith(BINARY):
            found.add(key, _text(value))
            continue
        # A proxy may join fields of one name by commas; base64 has none.
        for part in value.split(b","):
            found.add(key, decode_binary(part))
    return found


def decode_binary(value: bytes) -> bytes:
    """Bytes of base64, padded or not. Raises `MetadataError`."""
    value = value.strip(b" \t").rstrip(b"=")
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True) if value else b""
    except binascii.Error as error:
        raise MetadataError(f"binary metadata is no base64: {error}") from None


def _text(value: bytes) -> str:
    """Only ASCII is legal; what others send is shown rather than refused."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def parse_timeout(value: bytes) -> float:
    """Seconds of a ``grpc-timeout``. Raises `MetadataError`."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > MAX_TIMEOUT_DIGITS:
        raise MetadataError(f"{value[:16]!r} is no timeout: up to {MAX_TIMEOUT_DIGITS} digits and one of H M S m u n")
    return int(digits) * unit


@lru_cache(maxsize=1024)
def format_timeout(seconds: float) -> bytes:
    """A ``grpc-timeout`` of at least `seconds` and, from a microsecond on, at most 1 % more.

    Three significant digits and no more: what is left of a deadline differs in each call, and each new value costs
    both ends a header block that they have not met. The caller's own deadline is exact all the same.
    """
    if seconds >= LONGEST_TIMEOUT:
        return b"%dH" % 99_999_999
    nanos = max(1, math.ceil(seconds * 1e9))
    step = 10 ** max(0, len(str(nanos)) - 3)
    nanos = -(-nanos // step) * step
    for unit, size in _NANOS:
        if nanos < 10**7 * size:
            return b"%d%s" % (-(-nanos // size), unit)
    return b"%dH" % min(-(-nanos // _NANOS[-1][1]), 99_999_999)

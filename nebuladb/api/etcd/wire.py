"""Bytes of messages that come and go most: joined from parts that need no message object.

Numbers are never negative, but for a lease's id. The order of the fields is that of the numbers, as protobuf's own
encoders write it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nebuladb.kv.answer import DeleteResult, KeyValue

_SMALL: Final = tuple(bytes((number,)) for number in range(0x80))
WORD: Final = (1 << 64) - 1
"""Of a negative number protobuf writes the two's complement."""
VALUE_TAG: Final = b"\x2a"


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    if number < 0x80:
        return _SMALL[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0x20_0000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    if number < 0x1000_0000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14 & 0x7F | 0x80, number >> 21))
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def number_field(tag: bytes, number: int) -> bytes:
    """A number under its tag; nothing for 0."""
    return tag + varint(number) if number else b""


def message_field(tag: bytes, data: bytes) -> bytes:
    """A message, or bytes, under their tag."""
    return b"".join((tag, varint(len(data)), data))


def bytes_field(tag: bytes, data: bytes) -> bytes:
    """Bytes under their tag; nothing for none."""
    return message_field(tag, data) if data else b""


def key_value(kv: KeyValue) -> bytes:
    """``mvccpb.KeyValue``."""
    key, create, mod, version, lease, value = kv
    return b"".join(
        (
            b"\x0a", varint(len(key)), key,
            b"\x10", varint(create), b"\x18", varint(mod), b"\x20", varint(version),
            VALUE_TAG + varint(len(value)) + value if value else b"",
            b"\x30" + varint(lease & WORD) if lease else b"",
        )
    )  # fmt: skip


def range_response(prefix: bytes, kvs: Iterable[bytes], count: int, *, more: bool) -> bytes:
    """``RangeResponse``; `prefix` is its header, `kvs` are messages."""
    parts = [prefix]
    parts += [message_field(b"\x12", kv) for kv in kvs]
    if more:
        parts.append(b"\x18\x01")
    parts.append(number_field(b"\x20", count))
    return b"".join(parts)


def delete_response(prefix: bytes, result: DeleteResult) -> bytes:
    """``DeleteRangeResponse``; `prefix` is its header."""
    parts = [prefix, number_field(b"\x10", result.deleted)]
    parts += [message_field(b"\x1a", key_value(kv)) for kv in result.previous]
    return b"".join(parts)

"""A log entry and its record: the bytes that are proposed, sent, written and read back, encoded once.

Layout (``docs/formats.md``, "Entry record"), big-endian, 24 bytes and then the payload::

    u8 version = 1 | u8 kind | u16 reserved = 0 | u64 term | u64 index | u32 crc32(first 20 bytes + payload) | payload
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from zlib import crc32

from nebuladb.errors import Corruption

ENTRY_VERSION: Final = 1
ENTRY_HEADER: Final = 24
_HEAD: Final = struct.Struct(">BBHQQ")
_HEADER: Final = struct.Struct(">BBHQQI")


class EntryKind(IntEnum):
    """What the payload is. NORMAL: commands (``node.entry``), empty for a leader's no-op; CONFIGURATION: a change."""

    NORMAL = 0
    CONFIGURATION = 1


NORMAL: Final = EntryKind.NORMAL
CONFIGURATION: Final = EntryKind.CONFIGURATION
"""Bound once: see `raft.state.LEADER`."""


@dataclass(slots=True)
class Entry:
    """One entry; `record` is the truth, the other fields are read off it."""

    index: int
    term: int
    kind: int
    record: bytes

    @property
    def payload(self) -> bytes:
        """The bytes that were proposed (a copy)."""
        return self.record[ENTRY_HEADER:]


def encode_entry(index: int, term: int, kind: int, payload: bytes) -> Entry:
    """Build the entry and its record, with the CRC that accompanies it from here to every disk (S35)."""
    head = _HEAD.pack(ENTRY_VERSION, kind, 0, term, index)
    crc = crc32(payload, crc32(head))
    return Entry(index, term, kind, b"%b%b%b" % (head, crc.to_bytes(4, "big"), payload))


def decode_entry(record: bytes) -> Entry:
    """Read an entry off its record. Raises `Corruption` if the CRC or the version is wrong (S22, S35)."""
    if len(record) < ENTRY_HEADER:
        raise Corruption(f"a log entry of {len(record)} bytes is shorter than its header")
    version, kind, _, term, index, crc = _HEADER.unpack_from(record)
    if version != ENTRY_VERSION:
        raise Corruption(f"log entry {index} has format version {version}; this build knows {ENTRY_VERSION}")
    view = memoryview(record)
    if crc32(view[ENTRY_HEADER:], crc32(view[:20])) != crc:
        raise Corruption(f"log entry {index} of term {term} fails its CRC")
    return Entry(index, term, kind, record)


def entry_of(record: bytes) -> Entry:
    """The entry whose record this is, as this process encoded or has decoded it: its CRC is not asked again."""
    _, kind, _, term, index, _ = _HEADER.unpack_from(record)
    return Entry(index, term, kind, record)

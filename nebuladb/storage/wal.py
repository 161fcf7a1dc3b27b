"""Reading RocksDB's write-ahead log files ourselves, to judge damage that RocksDB can't (S34).

After a power cut the end of the WAL may be torn, which is honest: nobody was told that it is durable. A flipped bit in
what was flushed looks the same to RocksDB, and to open "at the damage" then loses votes and acknowledged entries. Every
batch of the log carries a stamp (its id, the last id known flushed when it was written) as its first row, so a later
record tells which it is. RocksDB also passes over one thing in silence: an older WAL that ends too early, at the end of
a record, with a newer one behind it. The ids show that hole.

Format (RocksDB's wiki, "Write Ahead Log File Format"): blocks of 32 KiB; in them fragments of records, little-endian::

    u32 masked crc32c(type .. data) | u16 length | u8 type (1 full, 2 first, 3 middle, 4 last) | data
    u32 masked crc32c(type .. data) | u16 length | u8 type (5 to 8, likewise)   | u32 log number | data     (recyclable)

and in a record a batch: u64 sequence | u32 count | rows, of which a put is ``1 | varint, key | varint, value``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from nebuladb.ids import BatchId
from nebuladb.storage.log_keys import ROW_VERSION, STAMP_KEY, decode_stamp, encode_pair

BLOCK: Final = 32 << 10
_HEADER: Final = struct.Struct("<IHB")
_LEGACY: Final = _HEADER.size
_RECYCLABLE: Final = _LEGACY + 4
_BATCH_HEADER: Final = 12
_STAMP_BYTES: Final = len(encode_pair(0, 0))
_STAMP_PUT: Final = bytes([1, len(STAMP_KEY)]) + STAMP_KEY + bytes([_STAMP_BYTES])
"""How the stamp's row begins in a batch."""
_STAMPED: Final = _BATCH_HEADER + len(_STAMP_PUT) + _STAMP_BYTES
"""Bytes of a batch up to the end of its stamp."""
_BEGINNINGS: Final = frozenset((1, 2, 5, 6))
"""Types of fragment that a record begins in."""
_HEADERS: Final = {1: _LEGACY, 2: _LEGACY, 3: _LEGACY, 4: _LEGACY} | dict.fromkeys((5, 6, 7, 8), _RECYCLABLE)
"""Type of fragment -> size of its header."""


class Hole(NamedTuple):
    """Batches are missing from `batch` on, and `files` lie behind the hole."""

    batch: BatchId
    files: list[Path]


def wal_files(directory: Path) -> list[Path]:
    """The WAL files of the closed database in `directory`, oldest first."""
    return sorted((path for path in directory.glob("*.log") if path.stem.isdigit()), key=lambda path: int(path.stem))


def find_hole(files: list[Path], stored: BatchId) -> Hole | None:
    """Where ids jump in the WAL of a database whose tables hold all batches up to `stored`.

    A hole is between files: in one, nothing is behind what is missing. This trusts lengths and ids and checks no CRC,
    RocksDB does: where it is misled by damage, RocksDB stops there too, and nothing behind would be kept anyway.
    """
    expected = stored + 1
    for position, path in enumerate(files):
        beginning = True
        for batch in _batches(path.read_bytes()):
            if batch > expected:
                return Hole(BatchId(expected), files[position:]) if beginning else None
            expected = max(expected, batch + 1)
            beginning = False
    return None


def highest_flushed(files: list[Path], above: BatchId) -> BatchId:
    """The highest batch that any sound record in `files` says was flushed, or `above` if none is higher.

    It looks at every place where a stamp might lie, damage before it or not, and believes it by its CRC. (A client's
    value that contains another node's WAL could be believed too. That errs on the safe side.)
    """
    highest = above
    for path in files:
        data = path.read_bytes()
        for stamp, fragments in _candidates(data):
            _, flushed = decode_stamp(stamp)
            if flushed > highest and all(_sound(data, begin) for begin in fragments):
                highest = flushed
    return highest


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continuing `crc`. Slow; for the few records that damage makes interesting."""
    crc ^= 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _batches(data: bytes) -> Iterator[BatchId]:
    """Ids of the stamped records in `data`, as far as its lengths lead."""
    at, head = 0, b""
    while at + _LEGACY <= len(data):
        room = BLOCK - at % BLOCK
        if room < _LEGACY:  # too little for a header: padding
            at += room
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        header = _HEADERS.get(kind)
        if header is None or header + length > room:
            return
        if kind in _BEGINNINGS:
            head = b""
        if len(head) < _STAMPED:
            head += data[at + header : at + header + min(length, _STAMPED - len(head))]
            if len(head) == _STAMPED and head.startswith(_STAMP_PUT, _BATCH_HEADER):
                yield decode_stamp(head[-_STAMP_BYTES:])[0]
        at += header + length


def _candidates(data: bytes) -> Iterator[tuple[bytes, list[int]]]:
    """Whatever looks like a stamp: its bytes, and where the fragments begin that hold it."""
    pattern = _STAMP_PUT + bytes([ROW_VERSION])
    at = data.find(pattern)
    while at >= 0:
        first = at - _BATCH_HEADER
        for header in (_LEGACY, _RECYCLABLE):
            stamp = data[first + _STAMPED - _STAMP_BYTES : first + _STAMPED]
            if first >= header and _begins(data, first - header, header) >= _STAMPED <= len(data) - first:
                yield stamp, [first - header]
        at = data.find(pattern, at + 1)
    # The record may be cut by a block's end within its stamp, or before it.
    for end in range(BLOCK, len(data) - _RECYCLABLE, BLOCK):
        rest = _HEADERS.get(data[end + _LEGACY - 1])
        for header in (_LEGACY, _RECYCLABLE):
            for length in range(_STAMPED):
                if rest == header and _begins(data, end - header - length, header) == length:
                    head = data[end - length : end] + data[end + rest : end + rest + _STAMPED - length]
                    if len(head) == _STAMPED and head.startswith(pattern, _BATCH_HEADER):
                        yield head[-_STAMP_BYTES:], [end - header - length, end]


def _begins(data: bytes, begin: int, header: int) -> int:
    """Length of the fragment at `begin` if its type, which has a header of `header` bytes, begins a record; else -1."""
    _, length, kind = _HEADER.unpack_from(data, begin)
    return int(length) if kind in _BEGINNINGS and _HEADERS[kind] == header else -1


def _sound(data: bytes, begin: int) -> bool:
    """Whether the fragment at `begin` is there with the right CRC."""
    masked, length, kind = _HEADER.unpack_from(data, begin)
    end = begin + _HEADERS[kind] + length
    crc = crc32c(data[begin + _LEGACY - 1 : end])
    return end <= len(data) and bool(masked == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE: Final = _make_table()

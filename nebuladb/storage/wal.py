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
"""How the stamp's row begins in a batch, and, with the version behind it, what we search damaged files for."""
_BEGINNINGS: Final = {1: _LEGACY, 2: _LEGACY, 5: _RECYCLABLE, 6: _RECYCLABLE}
"""Types of fragment that a batch begins in → size of their header."""
_TYPES: Final = {1: _LEGACY, 2: _LEGACY, 3: _LEGACY, 4: _LEGACY} | dict.fromkeys((5, 6, 7, 8), _RECYCLABLE)


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
        for batch, _ in _stamps(path.read_bytes()):
            if batch > expected:
                return Hole(BatchId(expected), files[position:]) if beginning else None
            expected = max(expected, batch + 1)
            beginning = False
    return None


def highest_flushed(files: list[Path], above: BatchId) -> BatchId:
    """The highest batch that any whole fragment in `files` says was flushed, or `above` if none is higher.

    It looks at every place where a stamp might lie, damage before it or not, and believes it by its CRC. (A client's
    value that contains another node's WAL could be believed too. That errs on the safe side.)
    """
    highest = above
    pattern = _STAMP_PUT + bytes([ROW_VERSION])
    for path in files:
        data = path.read_bytes()
        at = data.find(pattern)
        while at >= 0:
            stamp = at + len(_STAMP_PUT)
            if stamp + _STAMP_BYTES <= len(data):
                _, flushed = decode_stamp(data[stamp : stamp + _STAMP_BYTES])
                if flushed > highest and _whole(data, at - _BATCH_HEADER):
                    highest = flushed
            at = data.find(pattern, at + 1)
    return highest


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continuing `crc`. Slow; for the few records that damage makes interesting."""
    crc ^= 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _stamps(data: bytes) -> Iterator[tuple[BatchId, BatchId]]:
    """The stamps of the records in `data`, as far as its lengths lead."""
    at = 0
    while at + _LEGACY <= len(data):
        room = BLOCK - at % BLOCK
        if room < _LEGACY:  # too little for a header: padding
            at += room
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        header = _TYPES.get(kind)
        if header is None or header + length > room:
            return
        stamp = at + header + _BATCH_HEADER + len(_STAMP_PUT)
        if kind in _BEGINNINGS and data[stamp - len(_STAMP_PUT) : stamp] == _STAMP_PUT:
            if stamp + _STAMP_BYTES > min(len(data), at + header + length):
                return
            yield decode_stamp(data[stamp : stamp + _STAMP_BYTES])
        at += header + length


def _whole(data: bytes, batch: int) -> bool:
    """Whether a fragment that begins a batch, and whose data begins at `batch`, is there with the right CRC."""
    for header in (_LEGACY, _RECYCLABLE):
        begin = batch - header
        if begin < 0:
            continue
        masked, length, kind = _HEADER.unpack_from(data, begin)
        end = batch + length
        if _BEGINNINGS.get(kind) == header and end <= len(data):
            crc = crc32c(data[begin + _LEGACY - 1 : end])
            if masked == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF:
                return True
    return False


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE: Final = _make_table()

"""Reading RocksDB's write-ahead log files ourselves, to judge damage that RocksDB can't (S34).

After a power cut the end of the WAL may be torn, which is honest: nobody was told that it is durable. A flipped bit in
what was flushed looks the same to RocksDB, and to open "at the damage" then loses votes and acknowledged entries. Every
batch of the log carries a stamp (its id, the last id known flushed when it was written) as its first row, so a later
record tells which it is. Clients may store whatever looks like a log, so a stamp counts only with the database's own
identity in it. (Version 1 had none; once a log was opened, and its first page is there, none of those counts.) RocksDB
also passes over one thing in silence: an older WAL that ends too early, at the end of a record, with a newer one behind
it. The ids show that hole.

Behind the last record lie zeros, of which a file has some ahead (`nebuladb.storage.preallocation`); after a power cut
also between records, where a page was not written and a later one was. RocksDB takes a bad checksum for an end, and of
zeros passes over the rest of the block. Hence every checksum is looked at here, and files are cut behind their last
sound record before RocksDB sees them.

Format (RocksDB's wiki, "Write Ahead Log File Format"): blocks of 32 KiB; in them fragments of records, little-endian::

    u32 masked crc32c(type, data) | u16 length | u8 type (1 full, 2 first, 3 middle, 4 last) | data

and in a record a batch: u64 sequence | u32 count | rows, of which a put is ``1 | varint, key | varint, value``. A block
in which no header fits any more ends with zeros. Other types are those of recycled files, which ours are not
(docs/adr/0004).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c

from nebuladb.errors import Corruption, StoreError
from nebuladb.ids import BatchId
from nebuladb.storage.files import read, sync_directory, unwritten
from nebuladb.storage.log_keys import STAMP_KEY, STAMP_SIZES, Stamp, decode_stamp

_NAME: Final = re.compile(r"[0-9]+\.log")
BLOCK: Final = 32 << 10
_HEADER: Final = struct.Struct("<IHB")
_HEADER_BYTES: Final = _HEADER.size
_BATCH_HEADER: Final = 12
_STAMP_AT: Final = _BATCH_HEADER + 1 + 1 + len(STAMP_KEY) + 1
"""Where a batch's stamp begins."""
_PREFIXES: Final = {
    bytes([1, len(STAMP_KEY), *STAMP_KEY, size, version]): size for version, size in STAMP_SIZES.items()
}
"""How the stamp's row and the stamp in it begin -> the stamp's bytes."""
_STAMPED: Final = _STAMP_AT + max(STAMP_SIZES.values())
"""Bytes of a batch up to the end of its stamp, at most."""
_FULL: Final = 1
_FIRST: Final = 2
_LAST: Final = 4
_TYPES: Final = frozenset((1, 2, 3, 4))
_BEGINNINGS: Final = frozenset((_FULL, _FIRST))
"""Types of fragment that a record begins in; in the others one goes on."""


class Found(NamedTuple):
    """What the WAL of a closed database holds."""

    kept: BatchId
    """The last batch that is whole, with all before it."""
    flushed: BatchId
    """The last one of which any sound record says that it was flushed; if that is above `kept`, it is damage, and not
    a torn end."""
    sound: list[tuple[Path, int]]
    """Files with `kept` and those before it, and where their sound part ends. Empty: the files are gone, and the tables
    alone say that there were some."""
    behind: list[Path]
    """Files behind a hole."""

    @property
    def missing(self) -> str:
        """What had been made durable and isn't there, for people; empty if nothing is missing."""
        if not self.sound and not self.behind:
            return f"the files of its WAL (*.log) are gone, with the log batches after {self.kept}"
        if self.flushed <= self.kept:
            return ""
        return f"log batches {self.kept + 1} to {self.flushed} had been made durable and can't be read"


def wal_files(directory: Path) -> list[Path]:
    """The WAL files of the database in `directory`, if there is one, oldest first. Raises `StoreError` if that can't be
    told: `Path.glob` would find none then, and the log would be taken for one that lost them."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"data-dir: can't list {directory}: {error.strerror}") from error
    numbers = {int(name.removesuffix(".log")): name for name in names if _NAME.fullmatch(name)}
    return [directory / name for _, name in sorted(numbers.items())]


def examine(files: list[Path], stored: Stamp, identity: bytes) -> Found:
    """Judge the WAL of the database with `identity`, whose tables hold all batches up to `stored`. Batches without a
    stamp count as sound.

    Raises `Corruption` where batches are missing between two sound records of one file, or are another database's;
    `StoreError` where a file can't be read.
    """
    kept, flushed = int(stored.batch), 0
    sound: list[tuple[Path, int]] = []
    behind: list[Path] = []
    owned = stored.identity
    for position, path in enumerate(files):
        data = read(path)
        end, first = 0, kept
        for record_end, stamp in [] if behind else _records(data):
            if stamp is not None:
                if stamp.identity not in (identity, b""):
                    raise Corruption(f"{path} is another database's, or the file IDENTITY beside it is")
                if stamp.batch > kept + 1:
                    if kept > first:
                        raise Corruption(f"{path} lacks log batches {kept + 1} to {stamp.batch - 1} amid sound ones")
                    behind = files[position:]
                    end = 0
                    break
                owned = owned or stamp.identity
                kept, flushed = max(kept, stamp.batch), max(flushed, stamp.flushed)
            end = record_end
        if not behind:
            sound.append((path, end))
        flushed = max(flushed, _highest_flushed(data, end, (identity,) if owned else (identity, b"")))
    return Found(BatchId(kept), BatchId(flushed), sound, behind)


def cut(found: Found) -> None:
    """Leave of the files what RocksDB is to read. A crash on the way leaves what `examine` finds the same in. Raises
    `StoreError`; `DiskFull` where a file system never overwrites, and needs room to remove anything."""
    try:
        # The last one first: else there would be another hole.
        for path in reversed(found.behind):
            path.unlink()
            sync_directory(path.parent)
        for path, end in found.sound:
            if end < path.stat().st_size:
                os.truncate(path, end)
    except OSError as error:
        raise unwritten(path, error) from error


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`."""
    return int(google_crc32c.value(data))


def masked(crc: int) -> int:
    """How RocksDB writes a CRC down."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _records(data: bytes) -> Iterator[tuple[int, Stamp | None]]:
    """The records of a file up to the first that is not sound: its end, and its stamp or None."""
    at, head, within = 0, b"", False
    while at + _HEADER_BYTES <= len(data):
        room = BLOCK - at % BLOCK
        if room < _HEADER_BYTES:
            at += room
            continue
        checksum, length, kind = _HEADER.unpack_from(data, at)
        begin = at + _HEADER_BYTES
        end = begin + length
        if kind not in _TYPES or _HEADER_BYTES + length > room or end > len(data) or within == (kind in _BEGINNINGS):
            return
        if masked(crc32c(data[begin - 1 : end])) != checksum:
            return
        if len(head) < _STAMPED:
            head += data[begin : min(end, begin + _STAMPED)]
        within = kind == _FIRST or (within and kind != _LAST)
        if not within:
            yield end, _stamp(head)
            head = b""
        at = end


def _stamp(head: bytes) -> Stamp | None:
    """The stamp of a batch that begins with `head`, if it has one and all of it is there."""
    for prefix, size in _PREFIXES.items():
        if head.startswith(prefix, _BATCH_HEADER) and len(head) >= _STAMP_AT + size:
            return decode_stamp(head[_STAMP_AT : _STAMP_AT + size])
    return None


def _highest_flushed(data: bytes, start: int, identities: tuple[bytes, ...]) -> int:
    """The highest batch that a sound record from `start` on with one of `identities` says was flushed, else 0.

    It looks at every place where a stamp might lie, damage before it or not, and believes it by its CRC.
    """
    highest = 0
    for prefix in _PREFIXES:
        for head, fragments in _candidates(data, start, prefix):
            stamp = _stamp(head)
            if stamp is None or stamp.identity not in identities or stamp.flushed <= highest:
                continue
            if all(_sound(data, begin) for begin in fragments):
                highest = stamp.flushed
    return highest


def _candidates(data: bytes, start: int, prefix: bytes) -> Iterator[tuple[bytes, list[int]]]:
    """What looks like the beginning of a batch with such a stamp from `start` on: its bytes up to the stamp's end, and
    where the fragments begin that hold them."""
    stamped = _STAMP_AT + _PREFIXES[prefix]
    at = data.find(prefix, start)
    while at >= 0:
        first = at - _BATCH_HEADER
        if first >= _HEADER_BYTES and _begins(data, first - _HEADER_BYTES) >= stamped:
            yield data[first : first + stamped], [first - _HEADER_BYTES]
        at = data.find(prefix, at + 1)
    # The record may be cut by a block's end within its stamp, or before it.
    for end in range(start - start % BLOCK + BLOCK, len(data) - _HEADER_BYTES, BLOCK):
        if data[end + _HEADER_BYTES - 1] not in _TYPES - _BEGINNINGS:
            continue
        for length in range(stamped):
            if _begins(data, end - _HEADER_BYTES - length) == length:
                rest = end + _HEADER_BYTES
                head = data[end - length : end] + data[rest : rest + stamped - length]
                yield head, [end - _HEADER_BYTES - length, end]


def _begins(data: bytes, begin: int) -> int:
    """Length of the fragment at `begin` if its type begins a record; else -1."""
    _, length, kind = _HEADER.unpack_from(data, begin)
    return int(length) if kind in _BEGINNINGS else -1


def _sound(data: bytes, begin: int) -> bool:
    """Whether the fragment at `begin` is there, in one block, with the right CRC."""
    checksum, length, _ = _HEADER.unpack_from(data, begin)
    end = begin + _HEADER_BYTES + length
    if end > len(data) or (end - 1) // BLOCK != begin // BLOCK:
        return False
    return bool(checksum == masked(crc32c(data[begin + _HEADER_BYTES - 1 : end])))

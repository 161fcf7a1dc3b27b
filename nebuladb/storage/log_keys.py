"""Rows of the log's database, byte by byte (``docs/formats.md``, "Rows of raft/"). All integers are big-endian.

'e' | u64 group | u64 index  ->  entry record (``raft.entry``)
'h' | u64 group              ->  u8 version | u64 term | u64 vote | u64 commit
's' | u64 group              ->  u8 version | u64 index | u64 term
'r' | u64 group              ->  registry row (``node.registry`` owns its bytes)
'b'                          ->  u8 version | u64 batch | u64 flushed | 8 bytes of the database's own (not in version 1)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.ids import BatchId, GroupId
from nebuladb.raft.ready import HardState
from nebuladb.storage.engine import IDENTITY_BYTES

ROW_VERSION: Final = 1
STAMP_VERSION: Final = 2

ENTRY_ROW: Final = b"e"
HARD_STATE_ROW: Final = b"h"
START_ROW: Final = b"s"
REGISTRY_ROW: Final = b"r"
STAMP_KEY: Final = b"b"

_ENTRY_KEY: Final = struct.Struct(">cQQ")
_GROUP_KEY: Final = struct.Struct(">cQ")
_HARD_STATE: Final = struct.Struct(">BQQQ")
_PAIR: Final = struct.Struct(">BQQ")
_STAMP: Final = struct.Struct(f">BQQ{IDENTITY_BYTES}s")
STAMP_SIZES: Final = {ROW_VERSION: _PAIR.size, STAMP_VERSION: _STAMP.size}
"""Version of a stamp -> its bytes."""


# Calls of `struct` alone, with no function of Python's between: every write to the log needs them.
entry_key: Final[Callable[[int, int], bytes]] = partial(_ENTRY_KEY.pack, ENTRY_ROW)
"""(group, index) -> the key of that entry."""
group_key: Final[Callable[[bytes, int], bytes]] = _GROUP_KEY.pack
"""(row type, group) -> the key of the group's hard state, start or registry row."""
encode_hard_state: Final[Callable[[int, int, int], bytes]] = partial(_HARD_STATE.pack, ROW_VERSION)
"""The fields of a `HardState` -> the bytes above."""
encode_stamp: Final[Callable[[int, int, bytes], bytes]] = partial(_STAMP.pack, STAMP_VERSION)
"""The fields of a `Stamp` -> the row's value."""


def entries_end(group: int) -> bytes:
    """A key above those of all entries of `group` and below those of the next group."""
    return _ENTRY_KEY.pack(ENTRY_ROW, group, (1 << 64) - 1) + b"\0"


def index_of(key: bytes) -> int:
    """The index in an entry's key."""
    index: int = _ENTRY_KEY.unpack(key)[2]
    return index


def group_of(key: bytes) -> GroupId:
    """The group in such a key. Raises `Corruption`."""
    if len(key) != _GROUP_KEY.size:
        raise Corruption(f"a key of {len(key)} bytes in the rows of groups: {key[:32].hex()}")
    return GroupId(_GROUP_KEY.unpack(key)[1])


def rows_of(row: bytes) -> tuple[bytes, bytes]:
    """The range of keys of one row type."""
    return row, bytes([row[0] + 1])


def encode_pair(first: int, second: int) -> bytes:
    """The bytes of a log start, (index, term); a stamp of version 1, (batch, flushed), had the same layout."""
    return _PAIR.pack(ROW_VERSION, first, second)


def decode_hard_state(value: bytes) -> HardState:
    """Raises `Corruption`."""
    _check(value, _HARD_STATE, "a hard state")
    return HardState(*_HARD_STATE.unpack(value)[1:])


def decode_start(value: bytes) -> tuple[int, int]:
    """(index, term). Raises `Corruption`."""
    _check(value, _PAIR, "a log start")
    _, index, term = _PAIR.unpack(value)
    return index, term


class Stamp(NamedTuple):
    """The first row of every batch."""

    batch: BatchId = BatchId(0)
    """Its id."""
    flushed: BatchId = BatchId(0)
    """The last batch that was known to be flushed when it was written."""
    identity: bytes = b""
    """Of the database (`Engine.identity`), so that whoever stores a log's bytes in a database can't speak for its own
    log (S34). Empty in version 1, which had none."""


def decode_stamp(value: bytes | None) -> Stamp:
    """All zeros before the first batch. Raises `Corruption`."""
    if value is None:
        return Stamp()
    if value[:1] == bytes([ROW_VERSION]):
        _check(value, _PAIR, "a stamp")
        _, batch, flushed = _PAIR.unpack(value)
        return Stamp(BatchId(batch), BatchId(flushed))
    if value[:1] > bytes([STAMP_VERSION]):
        raise Corruption(
            f"a stamp has format version {value[0]}, this build knows {STAMP_VERSION}: a newer build wrote this log; "
            "start that one, or it is damaged"
        )
    _check(value, _STAMP, "a stamp", STAMP_VERSION)
    _, batch, flushed, identity = _STAMP.unpack(value)
    return Stamp(BatchId(batch), BatchId(flushed), identity)


def _check(value: bytes, layout: struct.Struct, what: str, version: int = ROW_VERSION) -> None:
    if len(value) != layout.size:
        raise Corruption(f"{what} has {len(value)} bytes instead of {layout.size}")
    if value[0] != version:
        raise Corruption(f"{what} has format version {value[0]}; this build knows {version}")

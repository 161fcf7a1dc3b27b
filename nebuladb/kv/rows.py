"""Rows: how a group's state lies in the engine (``docs/formats.md``).

Every key is group u64, generation u32, row type u8, then numbers of fixed width, then at most one user's key, which is
last: a row type's prefix has one length, so nothing has to mark where a user's key begins or ends, no row can be taken
for another, nothing is escaped, and rows lie in the order of the users' keys. All numbers are big-endian. Every value
begins with a format version.
"""

from __future__ import annotations

from functools import partial
from struct import Struct, error
from typing import Final, NamedTuple

from nebuladb.errors import Corruption
from nebuladb.ids import Generation, GroupId

STATE: Final = b"A"
CURRENT: Final = b"C"
DELETION: Final = b"D"
ATTACHMENT: Final = b"K"
LEASE: Final = b"L"
RECORD: Final = b"R"
SESSION: Final = b"S"
ANSWER: Final = b"W"

FORMAT: Final = 1
"""Version of every row and record written by this code."""

TOMBSTONE: Final = 1
AFTER_TOMBSTONE: Final = 2
"""Flags of a record: it is a deletion; what it superseded is one."""

U64: Final = Struct(">Q")
LEASE_ID: Final = Struct(">q")
POSITION: Final = Struct(">QI")
RECORD_HEAD: Final = Struct(">BBQIQQqQIQIH")
ROW_HEAD: Final = Struct(">BI")
LEASE_ROW: Final = Struct(">BQQQ")
SESSION_ROW: Final = Struct(">BQQ")
DELETION_ROW: Final = Struct(">BQQI")
ATTACHED: Final = bytes((FORMAT,))

RECORD_HEAD_SIZE: Final = RECORD_HEAD.size
RECORD_FLAGS: Final = 1
RECORD_MAIN: Final = slice(2, 10)
"""Where a record's bytes have its flags and its revision, for who needs no more of it than these."""
ROW_HEAD_SIZE: Final = ROW_HEAD.size
PREFIX_SIZE: Final = 12
KEY_AT: Final = PREFIX_SIZE + 1
"""Where a user's key starts in a C row's key."""


class Record(NamedTuple):
    """What a key was given at one revision: (`main`, `sub`), unique in the shard."""

    main: int
    sub: int
    create: int
    version: int
    """From 1; 0 = a deletion, which has no create revision, lease or value either."""
    lease: int
    past_main: int
    past_sub: int
    """The record that this one superseded; main 0 = none."""
    past_deleted: bool
    anchor_main: int
    anchor_sub: int
    """An ancestor further back, for leaps into history (`HISTORY_STRIDE`); main 0 = none."""
    stride: int
    """Records since the anchor."""
    value: bytes


# Bound once: `decode_record` runs for every row that is read. `tuple.__new__` skips a Python-level call.
_new_record: Final = partial(tuple.__new__, Record)
_unpack_head: Final = RECORD_HEAD.unpack_from


def encode_record(record: Record) -> bytes:
    """The bytes that stand in C and in R."""
    flags = (0 if record.version else TOMBSTONE) | (AFTER_TOMBSTONE if record.past_deleted else 0)
    head = RECORD_HEAD.pack(
        FORMAT, flags, record.main, record.sub, record.create, record.version, record.lease, record.past_main,
        record.past_sub, record.anchor_main, record.anchor_sub, record.stride,
    )  # fmt: skip
    return head + record.value


def decode_record(data: bytes, offset: int = 0) -> Record:
    """The record in data[offset:]. Raises `Corruption`."""
    try:
        version_byte, flags, main, sub, create, version, lease, past_main, past_sub, anchor_main, anchor_sub, stride = (
            _unpack_head(data, offset)
        )
    except error:
        raise Corruption("a record is cut short") from None
    if version_byte != FORMAT or flags > 3 or (version == 0) is not (flags & TOMBSTONE != 0):
        raise Corruption(f"a record of format {version_byte}, flags {flags}, version {version}")
    # Revisions that differ decide at once; tuples are made where they don't.
    if not (anchor_main < past_main < main or (anchor_main, anchor_sub) <= (past_main, past_sub) < (main, sub)):
        # A pointer that doesn't lead back would send a walk over history round in circles.
        raise Corruption(f"a record of revision {main}.{sub} points to {past_main}.{past_sub} and {anchor_main}")
    return _new_record(
        (
            main, sub, create, version, lease, past_main, past_sub, flags & AFTER_TOMBSTONE != 0, anchor_main,
            anchor_sub, stride, data[offset + RECORD_HEAD_SIZE :],
        )
    )  # fmt: skip


def decode_row(data: bytes) -> tuple[bytes, Record]:
    """Key and record of an R row. Raises `Corruption`."""
    if len(data) < ROW_HEAD_SIZE:
        raise Corruption("an R row is cut short")
    version, size = ROW_HEAD.unpack_from(data)
    end = ROW_HEAD_SIZE + size
    if version != FORMAT or size == 0:
        raise Corruption(f"an R row of format {version} with a key of {size} bytes")
    return data[ROW_HEAD_SIZE:end], decode_record(data, end)


class LeaseRow(NamedTuple):
    """A lease: `ttl` in ms, `expires` on the lease clock in ms, `renewal` = index of the entry that last renewed it."""

    ttl: int
    expires: int
    renewal: int


def encode_lease(row: LeaseRow) -> bytes:
    """The value of an L row."""
    return LEASE_ROW.pack(FORMAT, *row)


def decode_lease(data: bytes) -> LeaseRow:
    """Raises `Corruption`."""
    if len(data) != LEASE_ROW.size or data[0] != FORMAT:
        raise Corruption("a lease row is damaged")
    return LeaseRow(*LEASE_ROW.unpack(data)[1:])


class Keys:
    """The row keys of one (group, generation)."""

    __slots__ = ("answer", "attachment", "current", "current_end", "deletion", "lease", "record", "session", "state")

    def __init__(self, group: GroupId, generation: Generation) -> None:
        prefix = POSITION.pack(group, generation)
        self.state = prefix + STATE
        self.current = prefix + CURRENT
        self.current_end = prefix + DELETION
        self.deletion = prefix + DELETION
        self.attachment = prefix + ATTACHMENT
        self.lease = prefix + LEASE
        self.record = prefix + RECORD
        self.session = prefix + SESSION
        self.answer = prefix + ANSWER

    def record_key(self, main: int, sub: int) -> bytes:
        """Of an R row."""
        return self.record + POSITION.pack(main, sub)

    def lease_key(self, lease: int) -> bytes:
        """Of an L row; `lease` as `is_lease_id` wants it."""
        return self.lease + LEASE_ID.pack(lease)

    def attached(self, lease: int) -> tuple[bytes, bytes]:
        """Bounds of the K rows of a lease; the first one is what stands before each key."""
        low = self.attachment + LEASE_ID.pack(lease)
        # -1 is the last of all as an unsigned number.
        return low, self.lease if lease == -1 else self.attachment + LEASE_ID.pack(_following(lease))

    def span(self, key: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Bounds of the C rows of a range as etcd writes it (etcd 1): empty `end` = one key, ``\\0`` = to the last."""
        low = self.current + key
        if not end:
            return low, low + b"\0"
        if end == b"\0":
            return low, self.current_end
        return low, self.current + end


def is_lease_id(lease: int) -> bool:
    """Whether a lease may have this id: any of 64 bits but 0, negative ones included (etcd takes them)."""
    return lease != 0 and -1 << 63 <= lease < 1 << 63


def _following(lease: int) -> int:
    """The id whose rows follow those of `lease`: as unsigned numbers, negative ones come last."""
    return -1 << 63 if lease == (1 << 63) - 1 else lease + 1


def group_span(group: GroupId, generation: Generation) -> tuple[bytes, bytes]:
    """Bounds of all rows of (group, generation)."""
    prefix = POSITION.pack(group, generation)
    return prefix, prefix + b"\xff"

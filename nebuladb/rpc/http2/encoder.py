"""HPACK encoding (RFC 7541) of headers that repeat."""

from __future__ import annotations

from typing import Final

from hpack.table import HeaderTable

from nebuladb.rpc.http2.errors import LocalProtocolError
from nebuladb.rpc.http2.headers import FIELD_OVERHEAD, Field, Fields, MalformedError, check_field

MAX_TABLE: Final = 4096
"""Octets of the peer's table that we use, however much it offers: the constant headers of gRPC fit twenty times."""
MEMO: Final = 256
"""Header lists, and fields, whose encoding is kept; then all are forgotten."""
MEMO_OCTETS: Final = 1024
"""A longer encoding is not kept."""

_INDEXED: Final = frozenset(
    (
        b":authority",
        b":method",
        b":path",
        b":scheme",
        b":status",
        b"content-type",
        b"grpc-accept-encoding",
        b"grpc-encoding",
        b"grpc-status",
        b"te",
        b"user-agent",
    ),
)
"""Headers whose values repeat: they go into the table, while there is room. Any other stays out of it, for it may be
secret (RFC 7541 7.1) or differ each time."""
_SECRET: Final = frozenset((b"authorization", b"cookie", b"proxy-authorization", b"set-cookie"))
"""Never indexed, and no intermediary may (RFC 7541 6.2.3)."""

_STATIC: Final = HeaderTable.STATIC_TABLE_MAPPING
_STATIC_LENGTH: Final = HeaderTable.STATIC_TABLE_LENGTH


def integer(value: int, prefix: int, first: int) -> bytes:
    """RFC 7541 5.1: `value` in the low `prefix` bits of an octet that begins with `first`, and in what follows."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class HeaderEncoder:
    """A connection's encoder.

    It fills the peer's dynamic table until that is full and never evicts: an entry's index then depends on nothing
    but how many came after it. A block is memoised once it changes nothing any more. No Huffman codes: what repeats
    is an index, and what doesn't is short.
    """

    __slots__ = ("_blocks", "_fields", "_inserted", "_limit", "_room", "_updates", "version")

    def __init__(self) -> None:
        self._limit = MAX_TABLE
        self._room = MAX_TABLE
        self._inserted: dict[Field, int] = {}
        self._updates: list[int] = []
        self._blocks: dict[Fields, bytes] = {}
        self._fields: dict[Field, bytes] = {}
        self.version = 0
        """Changes whenever blocks that were encoded before are wrong from now on."""

    def resize(self, size: int) -> None:
        """The peer's HEADER_TABLE_SIZE, octets. A smaller table starts empty (RFC 7541 4.2: down, then up if it is)."""
        size = min(size, MAX_TABLE)
        if size == self._limit:
            return
        # Both sizes go out: the peer evicts by the smaller one. Zero empties its table as ours is, whatever fits.
        self._updates = [0, size] if size else [0]
        self._limit = self._room = size
        self._inserted.clear()
        self._changed()

    def check(self, fields: Fields) -> None:
        """Whether they may be sent (RFC 9113, section 8.2); what was sent before is not looked at again.

        Raises:
            LocalProtocolError: a name or value that HTTP/2 has no place for.
        """
        known = self._fields
        for field in fields:
            if field not in known:
                try:
                    check_field(field)
                except MalformedError as error:
                    raise LocalProtocolError(f"{error} can't be sent") from error

    def encode(self, fields: Fields) -> bytes:
        """The block of `fields`; to be sent before any other is encoded, since the peer's table follows the order.

        Raises: as `check`; nothing has changed then.
        """
        block = self._blocks.get(fields)
        if block is not None:
            return block
        self.check(fields)
        if self._updates:
            updates = b"".join([integer(size, 5, 0x20) for size in self._updates])
            self._updates = []
            return updates + self.encode(fields)
        known = self._fields
        parts = []
        fresh = False
        for field in fields:
            part = known.get(field)
            if part is None:
                # If it is inserted that moves the indexes of the fields behind it: each has its turn.
                part = self._field(field)
                fresh = True
            parts.append(part)
        block = b"".join(parts)
        # A list with a field that is new each time, a timeout, would only push out those that come again.
        if not fresh and len(block) <= MEMO_OCTETS:
            if len(self._blocks) >= MEMO:
                self._blocks.clear()
            self._blocks[fields] = block
        return block

    def known(self, fields: Fields) -> bytes | None:
        """The block of `fields` if it changes nothing at the peer, so that it may be sent at any time under this
        `version`."""
        return None if self._updates else self._blocks.get(fields)

    def _field(self, field: Field) -> bytes:
        name, value = field
        static = _STATIC.get(name)
        if static is not None and value in static[1]:
            return self._keep(field, integer(static[1][value], 7, 0x80))
        position = self._inserted.get(field)
        if position is not None:
            return self._keep(field, integer(_STATIC_LENGTH + len(self._inserted) - position, 7, 0x80))
        size = len(name) + len(value) + FIELD_OVERHEAD
        if name in _INDEXED and size <= self._room:
            encoded = _with_name(name, 6, 0x40) + _text(value)
            self._room -= size
            self._inserted[field] = len(self._inserted)
            self._changed()
            return encoded
        return self._keep(field, _with_name(name, 4, 0x10 if name in _SECRET else 0) + _text(value))

    def _keep(self, field: Field, encoded: bytes) -> bytes:
        if len(encoded) <= MEMO_OCTETS:
            if len(self._fields) >= MEMO:
                self._fields.clear()
            self._fields[field] = encoded
        return encoded

    def _changed(self) -> None:
        self.version += 1
        self._blocks.clear()
        self._fields.clear()


def _text(value: bytes) -> bytes:
    return integer(len(value), 7, 0) + value


def _with_name(name: bytes, prefix: int, first: int) -> bytes:
    """A literal's first octets: the name's index in the static table, or the name."""
    static = _STATIC.get(name)
    if static is not None:
        return integer(static[0], prefix, first)
    return bytes((first,)) + _text(name)

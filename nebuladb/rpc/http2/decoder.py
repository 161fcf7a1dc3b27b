"""HPACK decoding (RFC 7541), and what makes a repeated header block cost a look-up."""

from __future__ import annotations

from typing import Final

from hpack import HPACKDecodingError, HPACKError, InvalidTableSizeError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError
from nebuladb.rpc.http2.headers import FIELD_OVERHEAD, Field, Fields, HeaderBlock, Judge
from nebuladb.rpc.http2.limits import HARD_FACTOR, Limits

CACHED_BLOCKS: Final = 64
"""Blocks of one generation of a cache; there are two generations."""
CACHED_OCTETS: Final = 16 << 10
"""Octets of header lists in one generation: what a peer whose headers always differ makes us keep."""
MAX_SIZE_UPDATES: Final = 2
"""Table size updates at a block's start: the smallest and the last are all that can matter (RFC 7541 4.2). Without this
bound each octet 0x20 of a block would resize the table."""
TOO_LARGE: Final = "header list too large"
"""The fault of a list over `Limits.header_list` or `header_fields` that isn't malformed."""

_STATIC: Final = HeaderTable.STATIC_TABLE
_STATIC_END: Final = HeaderTable.STATIC_TABLE_LENGTH + 1
_INTEGER_OCTETS: Final = 7
"""More octets than the library reads of an integer."""


class HeaderDecoder:
    """A connection's decoder.

    The table, integers and Huffman codes are the `hpack` library's; the loop over a block is ours. The library's takes
    some 30 µs for a request, and clients that index whatever they send (gRPC for Go: each grpc-timeout) would pay it
    for every call. Both must agree on any sequence of blocks, which a test holds.

    Two caches, each of two generations (a full one becomes the old one and the old one is dropped; a hit in the old one
    moves up), so that a stream of new blocks can't push out those in use:

    - `known`: a block's bytes → its HeaderBlock, for blocks that neither change the table nor were decoded under
      another state of it. Whatever changes the table empties it.
    - by fields, of blocks of nothing but indexes: the same list in other bytes, as after an insertion that moved every
      index, is the same HeaderBlock again, so that the upper layer's memo is not made anew.
    """

    __slots__ = (
        "_judge",
        "_known_octets",
        "_known_old",
        "_limits",
        "_lists",
        "_lists_octets",
        "_lists_old",
        "_most",
        "_most_table",
        "_table",
        "known",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._judge = Judge()
        self._table = HeaderTable()
        self._most_table = HeaderTable.DEFAULT_SIZE
        """What the peer's table may be at most: the default until it has acknowledged ours."""
        self._most = limits.header_list * HARD_FACTOR
        self.known: dict[bytes, HeaderBlock] = {}
        """For the connection's inlined look-up. It may be another object after a `decode`."""
        self._known_old: dict[bytes, HeaderBlock] = {}
        self._known_octets = 0
        self._lists: dict[Fields, HeaderBlock] = {}
        self._lists_old: dict[Fields, HeaderBlock] = {}
        self._lists_octets = 0

    def allow_table(self, size: int) -> None:
        """The peer has acknowledged our HEADER_TABLE_SIZE of `size` octets: its next block must keep to it."""
        self._most_table = size
        self._forget()

    def decode(self, block: bytes) -> HeaderBlock:
        """The list that `block` encodes.

        Raises:
            RemoteProtocolError: COMPRESSION_ERROR; ENHANCE_YOUR_CALM for what is over the hard bounds. The tables
                disagree then and the connection can't go on.
        """
        found = self.known.get(block)
        if found is not None:
            return found
        if len(block) > self._limits.header_block:
            raise RemoteProtocolError("header block too large", ErrorCode.ENHANCE_YOUR_CALM)
        found = self._known_old.get(block)
        if found is None:
            try:
                at = self._size_updates(block)
                fields, size, literals, inserted = self._fields(block, at)
                if self._table.maxsize > self._most_table:
                    raise InvalidTableSizeError
            except HPACKError as error:
                # The library's own words may name addresses in memory.
                message = f"header block: {type(error).__name__}"
                raise RemoteProtocolError(message, ErrorCode.COMPRESSION_ERROR) from error
            found = self._judged(fields, size) if literals else self._listed(fields, size)
            if inserted or at:
                self._forget()
                return found
        self._remember(block, found)
        return found

    def _size_updates(self, block: bytes) -> int:
        """Resize the table as the block's start says; where the fields begin."""
        at = updates = 0
        while at < len(block) and block[at] & 0xE0 == 0x20:
            size, at = _integer(block, at, 5)
            updates += 1
            if size > self._most_table or updates > MAX_SIZE_UPDATES:
                raise InvalidTableSizeError
            self._table.maxsize = size
        return at

    def _fields(self, block: bytes, at: int) -> tuple[Fields, int, bool, bool]:
        """(list, its size, has it literals, has the table changed) of the block from `at` on."""
        table = self._table
        dynamic = table.dynamic_entries
        most = self._most
        fields: list[Field] = []
        size = 0
        literals = inserted = False
        end = len(block)
        while at < end:
            octet = block[at]
            if octet & 0x80:
                # Indexed (6.1). An index of one octet, which nearly all are, is worth having no call.
                index = octet & 0x7F
                if 0 < index < _STATIC_END:
                    field = _STATIC[index - 1]
                    at += 1
                elif index < 0x7F and index - _STATIC_END < len(dynamic) and index:
                    field = dynamic[index - _STATIC_END]
                    at += 1
                else:
                    index, at = _integer(block, at, 7)
                    field = table.get_by_index(index)
            elif octet & 0x60 == 0x20:
                raise HPACKDecodingError("a size update behind fields")
            else:
                # Literals (6.2): with indexing, without it, never indexed.
                literals = True
                index, at = _integer(block, at, 6 if octet & 0x40 else 4)
                if index:
                    name = table.get_by_index(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = (name, value)
                if octet & 0x40:
                    inserted = True
                    table.add(name, value)
            fields.append(field)
            size += len(field[0]) + len(field[1]) + FIELD_OVERHEAD
            if size > most:
                raise RemoteProtocolError(TOO_LARGE, ErrorCode.ENHANCE_YOUR_CALM)
        return tuple(fields), size, literals, inserted

    def _listed(self, fields: Fields, size: int) -> HeaderBlock:
        found = self._lists.get(fields)
        if found is not None:
            return found
        found = self._lists_old.get(fields) or self._judged(fields, size)
        self._lists_octets += size
        if len(self._lists) >= CACHED_BLOCKS or self._lists_octets > CACHED_OCTETS:
            self._lists_old, self._lists = self._lists, {}
            self._lists_octets = size
        if size <= CACHED_OCTETS:
            self._lists[fields] = found
        return found

    def _judged(self, fields: Fields, size: int) -> HeaderBlock:
        block = self._judge.classify(fields, size)
        limits = self._limits
        if size > limits.header_list or len(fields) > limits.header_fields:
            block.fault = block.fault or TOO_LARGE
        elif block.length < 0:
            block.plain = block.kind
        return block

    def _remember(self, block: bytes, found: HeaderBlock) -> None:
        # A block is shorter than its list but for Huffman codes of rare octets, hence both.
        octets = found.size + len(block)
        self._known_octets += octets
        if len(self.known) >= CACHED_BLOCKS or self._known_octets > CACHED_OCTETS:
            self._known_old, self.known = self.known, {}
            self._known_octets = octets
        if octets <= CACHED_OCTETS:
            self.known[block] = found

    def _forget(self) -> None:
        if self.known or self._known_old:
            self.known = {}
            self._known_old = {}
            self._known_octets = 0


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """(integer with a prefix of `bits`, index behind it), RFC 7541 5.1."""
    most = (1 << bits) - 1
    value = block[at] & most
    if value < most:
        return value, at + 1
    value, size = decode_integer(block[at : at + _INTEGER_OCTETS], bits)
    return value, at + size


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """(string, index behind it), RFC 7541 5.2."""
    if at >= len(block):
        raise HPACKDecodingError("a string is missing")
    octet = block[at]
    size = octet & 0x7F
    start = at + 1
    if size == 0x7F:
        size, start = _integer(block, at, 7)
    after = start + size
    if after > len(block):
        raise HPACKDecodingError("a string is cut short")
    text = block[start:after]
    return (decode_huffman(text) if octet & 0x80 else text), after

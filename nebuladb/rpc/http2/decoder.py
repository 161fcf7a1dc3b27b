"""HPACK decoding (RFC 7541) through the `hpack` library, and around it what makes a repeated block cost a look-up."""

from __future__ import annotations

from typing import Final

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError
from nebuladb.rpc.http2.headers import FIELD_OVERHEAD, Field, Fields, HeaderBlock, Judge
from nebuladb.rpc.http2.limits import HARD_FACTOR, Limits

CACHED_BLOCKS: Final = 64
"""Blocks of one generation of a cache; there are two generations."""
CACHED_OCTETS: Final = 16 << 10
"""Octets of header lists in one generation; together they bound what a peer whose headers always differ makes us
keep."""
MAX_SIZE_UPDATES: Final = 2
"""Table size updates at a block's start: the smallest and the last are all that can matter (RFC 7541 4.2)."""

TOO_LARGE: Final = "header list too large"
"""The fault of a list over `Limits.header_list` or `header_fields` that isn't malformed."""

_STATIC: Final = HeaderTable.STATIC_TABLE
_STATIC_END: Final = HeaderTable.STATIC_TABLE_LENGTH + 1


class HeaderDecoder:
    """A connection's decoder.

    Two caches, each of two generations (a full one becomes the old one and the old one is dropped; a hit in the old
    one moves up), so that a stream of new blocks can't push out those in use:

    - `known`: a block's bytes → its HeaderBlock, for blocks that neither change the table nor were decoded under
      another state of it. Whatever changes the table empties it.
    - by fields: the same list in other bytes, as after an insertion that moved every index, is the same HeaderBlock
      again, so that validation and the upper layer's memo are not repeated.
    """

    __slots__ = (
        "_decoder",
        "_judge",
        "_known_octets",
        "_known_old",
        "_limits",
        "_lists",
        "_lists_octets",
        "_lists_old",
        "known",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = Decoder(limits.header_list * HARD_FACTOR)
        self._judge = Judge()
        self.known: dict[bytes, HeaderBlock] = {}
        """For the connection's inlined look-up. It is another object after every `decode`."""
        self._known_old: dict[bytes, HeaderBlock] = {}
        self._known_octets = 0
        self._lists: dict[Fields, HeaderBlock] = {}
        self._lists_old: dict[Fields, HeaderBlock] = {}
        self._lists_octets = 0

    def allow_table(self, size: int) -> None:
        """The peer has acknowledged our HEADER_TABLE_SIZE of `size` octets: its next block must keep to it."""
        self._decoder.max_allowed_table_size = size
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
                fields = self._unchanging(block)
                if fields is None:
                    found = self._block(self._changing(block))
                    self._forget()
                    return found
            except OversizedHeaderListError as error:
                raise RemoteProtocolError("header list too large", ErrorCode.ENHANCE_YOUR_CALM) from error
            except HPACKError as error:
                # The library's own words may name addresses in memory.
                message = f"header block: {type(error).__name__}"
                raise RemoteProtocolError(message, ErrorCode.COMPRESSION_ERROR) from error
            found = self._block(fields)
        self._remember(block, found)
        return found

    def _unchanging(self, block: bytes) -> Fields | None:
        """Decode a block that can't change the table, reading the library's; None: leave it to the library.

        This is the path of a client with a header that differs in each call: a few table look-ups and a literal.
        """
        decoder = self._decoder
        table = decoder.header_table
        if table.maxsize > decoder.max_allowed_table_size:
            return None
        dynamic = table.dynamic_entries
        top = _STATIC_END + len(dynamic)
        room = decoder.max_header_list_size
        fields: list[Field] = []
        at, end = 0, len(block)
        while at < end:
            octet = block[at]
            if octet & 0x80:
                index = octet & 0x7F
                if index == 0x7F or not 0 < index < top:
                    return None
                field = _STATIC[index - 1] if index < _STATIC_END else dynamic[index - _STATIC_END]
                at += 1
            elif octet & 0x60:
                return None
            else:
                index = octet & 0x0F
                if index == 0x0F:
                    return None
                if index:
                    name = _STATIC[index - 1][0]
                    at += 1
                else:
                    name, at = _literal(block, at + 1)
                    if at < 0:
                        return None
                value, at = _literal(block, at)
                if at < 0:
                    return None
                field = (name, value)
            fields.append(field)
            room -= len(field[0]) + len(field[1]) + FIELD_OVERHEAD
            if room < 0:
                raise OversizedHeaderListError
        return tuple(fields)

    def _changing(self, block: bytes) -> Fields:
        """Decode through the library."""
        updates = at = 0
        # Without this bound each octet 0x20 of a block would resize the table.
        while at < len(block) and block[at] & 0xE0 == 0x20:
            updates += 1
            at += 1
            if block[at - 1] & 0x1F == 0x1F:
                while at < len(block) and block[at] & 0x80:
                    at += 1
                at += 1
        if updates > MAX_SIZE_UPDATES:
            raise RemoteProtocolError("too many table size updates", ErrorCode.COMPRESSION_ERROR)
        return tuple([(header[0], header[1]) for header in self._decoder.decode(block, raw=True)])

    def _block(self, fields: Fields) -> HeaderBlock:
        found = self._lists.get(fields)
        if found is not None:
            return found
        found = self._lists_old.get(fields) or self._judged(fields)
        self._lists_octets += found.size
        if len(self._lists) >= CACHED_BLOCKS or self._lists_octets > CACHED_OCTETS:
            self._lists_old, self._lists = self._lists, {}
            self._lists_octets = found.size
        if found.size <= CACHED_OCTETS:
            self._lists[fields] = found
        return found

    def _judged(self, fields: Fields) -> HeaderBlock:
        size = FIELD_OVERHEAD * len(fields)
        for name, value in fields:
            size += len(name) + len(value)
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


def _literal(block: bytes, at: int) -> tuple[bytes, int]:
    """(string, index behind it) of a string whose length takes one octet; index -1: leave it to the library."""
    if at >= len(block):
        return b"", -1
    octet = block[at]
    size = octet & 0x7F
    start = at + 1
    after = start + size
    if size == 0x7F or after > len(block):
        return b"", -1
    text = block[start:after]
    return (decode_huffman(text) if octet & 0x80 else text), after

"""Header lists, and what makes one malformed (RFC 9113, sections 8.1 to 8.3)."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, Final

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]
"""Names in lower case, pseudo headers first. Keep a constant one as one object: what repeats is encoded once."""

FIELD_OVERHEAD: Final = 32
"""What a field counts beside name and value (RFC 7541 4.1)."""
KNOWN_FIELDS: Final = 128
"""Fields that were found good, and are remembered; then all are forgotten."""
KNOWN_FIELD_OCTETS: Final = 256
"""A longer one is looked at each time."""

_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
"""A token without capitals (section 8.2.1)."""
_VALUE: Final = re.compile(rb"(?:[^\0\r\n \t](?:[^\0\r\n]*[^\0\r\n \t])?)?\Z")
"""No NUL, CR or LF, and no white space at either end."""
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"),
)
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONTENT_LENGTH: Final = b"content-length"
_HOST: Final = b"host"
_MAX_LENGTH_DIGITS: Final = 18


class Kind(IntEnum):
    """What a header list can stand for."""

    MALFORMED = 0
    REQUEST = 1
    RESPONSE = 2
    INFORMATIONAL = 3
    """A response's forerunner: 100 to 199."""
    TRAILERS = 4


class HeaderBlock:
    """A decoded header list. One that repeats on a connection is one object.

    `memo` is the upper layer's: what it made of the fields, so that it makes it once.
    """

    __slots__ = ("fault", "fields", "kind", "length", "memo", "plain", "size")

    def __init__(self, fields: Fields, size: int) -> None:
        self.fields: Fields = fields
        self.memo: Any = None
        self.size: int = size
        """Octets as RFC 7541 4.1 counts them."""
        self.kind: Kind = Kind.MALFORMED
        self.fault: str = ""
        """What makes it malformed."""
        self.length: int = -1
        """content-length; -1 without one."""
        self.plain: Kind = Kind.MALFORMED
        """Its kind if that is all there is to know: no content-length, and within the limits."""

    def __repr__(self) -> str:
        return f"<HeaderBlock {self.kind.name} {self.fields!r}>"


class MalformedError(Exception):
    """Why a header list is malformed."""


def check_field(field: Field) -> None:
    """A field by itself.

    Raises:
        MalformedError: it has no place in HTTP/2 (section 8.2).
    """
    name, value = field
    if not _NAME.match(name):
        raise MalformedError(f"header name {name[:64]!r}")
    if not _VALUE.match(value):
        raise MalformedError(f"value of {name[:64]!r}")
    if name in _CONNECTION_SPECIFIC:
        raise MalformedError(f"{name!r} belongs to HTTP/1.1")
    if name == b"te" and value.lower() != b"trailers":
        raise MalformedError("te other than trailers")


class Judge:
    """Tells what header lists are; remembers the fields that it found good, for lists share most of theirs."""

    __slots__ = ("_good",)

    def __init__(self) -> None:
        self._good: set[Field] = set()

    def classify(self, fields: Fields, size: int) -> HeaderBlock:
        """A block of `fields`, whose size is known; malformed or not."""
        block = HeaderBlock(fields, size)
        try:
            self._examine(block)
        except MalformedError as error:
            block.fault = str(error)
        return block

    def _examine(self, block: HeaderBlock) -> None:
        good = self._good
        pseudo: dict[bytes, bytes] = {}
        regular = False
        for field in block.fields:
            if field not in good:
                check_field(field)
                self._remember(field)
            name, value = field
            if name[0] == 0x3A:
                if regular or name in pseudo:
                    raise MalformedError(f"{name[:64]!r} twice, or behind other headers")
                pseudo[name] = value
                continue
            regular = True
            if name == _CONTENT_LENGTH:
                block.length = _length(value, block.length)
            elif name == _HOST and pseudo.get(b":authority", value) != value:
                raise MalformedError("host is not :authority")
        if not pseudo:
            block.kind = Kind.TRAILERS
        elif b":status" in pseudo:
            block.kind = _response(pseudo)
        else:
            block.kind = _request(pseudo)

    def _remember(self, field: Field) -> None:
        if len(field[0]) + len(field[1]) <= KNOWN_FIELD_OCTETS:
            if len(self._good) >= KNOWN_FIELDS:
                self._good.clear()
            self._good.add(field)


def _length(value: bytes, before: int) -> int:
    """content-length; said twice it must be the same (section 8.1.1)."""
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS or before not in (-1, int(value)):
        raise MalformedError("content-length")
    return int(value)


def _response(pseudo: dict[bytes, bytes]) -> Kind:
    status = pseudo[b":status"]
    if len(pseudo) > 1:
        raise MalformedError("a pseudo header beside :status")
    # 101 belongs to HTTP/1.1's upgrade (section 8.6).
    if len(status) != 3 or not status.isdigit() or status < b"100" or status == b"101":
        raise MalformedError(f":status {status[:64]!r}")
    return Kind.INFORMATIONAL if status < b"200" else Kind.RESPONSE


def _request(pseudo: dict[bytes, bytes]) -> Kind:
    if not pseudo.keys() <= _REQUEST_PSEUDO:
        raise MalformedError(f"{min(pseudo.keys() - _REQUEST_PSEUDO)[:64]!r} is unknown")
    # CONNECT has neither :scheme nor :path (section 8.5); this is no proxy, so that it is refused with the malformed.
    if not pseudo.get(b":method") or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise MalformedError(":method, :scheme or :path is missing or empty")
    return Kind.REQUEST

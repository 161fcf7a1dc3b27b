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

_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
"""A token without capitals (section 8.2.1)."""
_VALUE: Final = re.compile(rb"(?:[^\0\r\n \t](?:[^\0\r\n]*[^\0\r\n \t])?)?\Z")
"""No NUL, CR or LF, and no white space at either end."""
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"),
)
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
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
    """A decoded header list. A block that repeats on a connection is one object.

    `memo` is the upper layer's: what it made of the fields, so that it makes it once.
    """

    __slots__ = ("fault", "fields", "kind", "length", "memo", "size")

    def __init__(self, fields: Fields) -> None:
        self.fields: Fields = fields
        self.memo: Any = None
        self.size: int = sum(len(name) + len(value) for name, value in fields) + FIELD_OVERHEAD * len(fields)
        """As RFC 7541 4.1 counts it."""
        self.length: int = -1
        """content-length; -1 without one."""
        self.fault: str = ""
        """What makes it malformed."""
        self.kind: Kind = Kind.MALFORMED
        try:
            self.kind = self._classify()
        except _MalformedError as error:
            self.fault = str(error)

    def __repr__(self) -> str:
        return f"<HeaderBlock {self.kind.name} {self.fields!r}>"

    def _classify(self) -> Kind:
        pseudo: dict[bytes, bytes] = {}
        regular = False
        for name, value in self.fields:
            if not _NAME.match(name):
                raise _MalformedError(f"header name {name[:64]!r}")
            if not _VALUE.match(value):
                raise _MalformedError(f"value of {name[:64]!r}")
            if name.startswith(b":"):
                if regular or name in pseudo:
                    raise _MalformedError(f"{name[:64]!r} twice, or behind other headers")
                pseudo[name] = value
            else:
                regular = True
                self._check_regular(name, value, pseudo)
        if not pseudo:
            return Kind.TRAILERS
        if b":status" in pseudo:
            return _response(pseudo)
        return _request(pseudo)

    def _check_regular(self, name: bytes, value: bytes, pseudo: dict[bytes, bytes]) -> None:
        if name in _CONNECTION_SPECIFIC:
            raise _MalformedError(f"{name!r} belongs to HTTP/1.1")
        if name == b"te" and value.lower() != b"trailers":
            raise _MalformedError("te other than trailers")
        if name == b"host" and pseudo.get(b":authority", value) != value:
            raise _MalformedError("host is not :authority")
        if name == b"content-length":
            if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS or self.length not in (-1, int(value)):
                raise _MalformedError("content-length")
            self.length = int(value)


class _MalformedError(Exception):
    """Why a header list is malformed."""


def _response(pseudo: dict[bytes, bytes]) -> Kind:
    status = pseudo[b":status"]
    if len(pseudo) > 1:
        raise _MalformedError("a pseudo header beside :status")
    # 101 belongs to HTTP/1.1's upgrade (section 8.6).
    if len(status) != 3 or not status.isdigit() or status < b"100" or status == b"101":
        raise _MalformedError(f":status {status[:64]!r}")
    return Kind.INFORMATIONAL if status < b"200" else Kind.RESPONSE


def _request(pseudo: dict[bytes, bytes]) -> Kind:
    unknown = pseudo.keys() - _REQUEST_PSEUDO
    if unknown:
        raise _MalformedError(f"{min(unknown)[:64]!r} is unknown")
    # CONNECT has neither :scheme nor :path (section 8.5); this is no proxy, so that it is refused with the malformed.
    if not pseudo.get(b":method") or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise _MalformedError(":method, :scheme or :path is missing or empty")
    return Kind.REQUEST

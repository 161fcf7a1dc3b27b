"""How ``load`` lays a file out in the database. Pure.

Under the file's path (prefix and POSIX path, relative to the loaded directory) lies its first MiB, under
``path \\0 chunk \\0 NNNNNNNN`` (eight hexadecimal digits, from 1) each further one, and under ``path \\0 meta`` its
meta row. A file counts as loaded only when the meta row is there; that is written with or after everything else.
No path of a file system contains a zero byte, so these keys collide with no other file's, and in key order the rows of
a file follow each other, its meta row last.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final, NamedTuple

CHUNK: Final = 1024 * 1024
"""Bytes a row: with its key it fits into a request."""

_CHUNK: Final = b"\0chunk\0"
_META: Final = b"\0meta"
_DIGITS: Final = 8

CONTENT: Final = 0
META: Final = -1


class Meta(NamedTuple):
    """A loaded file's meta row. `mode`: its permission bits."""

    size: int
    sha256: str
    mode: int

    @property
    def chunks(self) -> int:
        """Rows of content; an empty file has one."""
        return max(1, -(-self.size // CHUNK))

    def to_bytes(self) -> bytes:
        """As JSON with sorted keys."""
        row = {**self._asdict(), "chunks": self.chunks, "chunk_size": CHUNK}
        return json.dumps(row, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, row: bytes) -> Meta:
        """Raises ValueError unless it is a meta row of this layout."""
        try:
            fields = json.loads(row)
            meta = cls(int(fields["size"]), str(fields["sha256"]), int(fields["mode"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a meta row: {error}") from None
        if fields.get("chunk_size") != CHUNK or fields.get("chunks") != meta.chunks or meta.size < 0:
            raise ValueError("a meta row of another layout; use a newer nebula-cli")
        return meta

    @classmethod
    def of(cls, content: bytes, mode: int) -> Meta:
        """Of a file that was read as a whole."""
        return cls(len(content), hashlib.sha256(content).hexdigest(), mode)


def chunk_key(path: bytes, number: int) -> bytes:
    """Of the chunk with this number, from 0."""
    return path + _CHUNK + b"%0*x" % (_DIGITS, number) if number else path


def meta_key(path: bytes) -> bytes:
    """Of the meta row."""
    return path + _META


def chunk_range(path: bytes) -> tuple[bytes, bytes]:
    """[start, end) of all further chunks that may be there."""
    return path + _CHUNK, path + _CHUNK[:-1] + b"\1"


def all_but_first(path: bytes) -> tuple[bytes, bytes]:
    """[start, end) of further chunks and meta row."""
    return path + b"\0", path + b"\1"


def parse_key(key: bytes) -> tuple[bytes, int]:
    """(path, what): a chunk's number, from `CONTENT` on, or `META`. What `chunk_key` doesn't make is a path."""
    if key.endswith(_META):
        return key[: -len(_META)], META
    head, mark, digits = key[:-_DIGITS], key[-_DIGITS - len(_CHUNK) : -_DIGITS], key[-_DIGITS:]
    if mark == _CHUNK and all(digit in b"0123456789abcdef" for digit in digits) and int(digits, 16):
        return head[: -len(_CHUNK)], int(digits, 16)
    return key, CONTENT

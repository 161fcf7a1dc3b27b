"""Chunks: a shard's rows as a sequence of checked, compressed pieces, for snapshots between nodes and for backups.

A sequence is one HEAD, any number of ROWS, one END, numbered from 0. Big-endian (``docs/formats.md``, "Chunk")::

    u8 version = 1 | u8 kind | u16 reserved | u32 number | u32 raw: bytes of the content
    | u32 crc32 of the 12 bytes before and of the payload | payload: the content; of ROWS as one zstd frame

The contents of all ROWS together are one stream of rows, cut anywhere, so that no chunk is larger than `CHUNK_BYTES`
however large a row is.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b
from struct import Struct, error
from typing import Final, NamedTuple
from zlib import crc32

from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

from nebuladb.errors import Corruption

CHUNK_VERSION: Final = 1
CHUNK_BYTES: Final = 128 << 10
"""Content of one chunk: a heartbeat behind it on a link of 100 Mbit/s waits 10 ms."""
MAX_CHUNK_BYTES: Final = 1 << 20
"""Content that a reader takes in one chunk: what a later version may send."""
MAX_ROW_BYTES: Final = 8 << 20
"""Key and value of one row that a reader waits for: twice the largest there is, a session's answer."""

CHUNK_HEAD: Final = Struct(">BBHIII")
ROW_LENGTHS: Final = Struct(">II")
_CHECKED: Final = 12
_HEAD: Final = Struct(">7QI")
_END: Final = Struct(">QQ16s")


class ChunkKind(IntEnum):
    """What a chunk holds."""

    HEAD = 1
    ROWS = 2
    END = 3


class Head(NamedTuple):
    """The view that the rows are of; all of it from one consistent state, configuration included (S5)."""

    group: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on it
    """The last entry that is applied in it, whole."""
    term: int
    """Its term."""
    revision: int
    floor: int
    keys: int
    """Keys that exist, and the bytes of those and of their values: for progress."""
    size: int
    configuration: bytes

    def encode(self) -> bytes:
        """u64 each; u32 length of the configuration, and it."""
        return _HEAD.pack(*self[:7], len(self.configuration)) + self.configuration

    @classmethod
    def decode(cls, data: bytes) -> Head:
        """Raises `Corruption`."""
        try:
            group, index, term, revision, floor, keys, size, length = _HEAD.unpack_from(data)
        except error:
            raise Corruption("a chunk's head is cut short") from None
        if len(data) != _HEAD.size + length:
            raise Corruption("a chunk's head does not end where its configuration does")
        return cls(group, index, term, revision, floor, keys, size, data[_HEAD.size :])


class End(NamedTuple):
    """What the rows came to: their number, the bytes of their stream, and `stream_hash` over head and stream."""

    rows: int
    size: int
    digest: bytes

    def encode(self) -> bytes:
        """Two u64 and 16 bytes."""
        return _END.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> End:
        """Raises `Corruption`."""
        if len(data) != _END.size:
            raise Corruption("the last chunk is cut short")
        return cls(*_END.unpack(data))


class Chunk(NamedTuple):
    """A chunk that was checked; `content` is unpacked."""

    kind: ChunkKind
    number: int
    content: bytes


def stream_hash() -> blake2b:
    """BLAKE2b of 16 bytes."""
    return blake2b(digest_size=16)


def encode_chunk(kind: ChunkKind, number: int, raw: int, payload: bytes) -> bytes:
    """`payload` with its header; `raw`: bytes of the content that it stands for."""
    head = CHUNK_HEAD.pack(CHUNK_VERSION, kind, 0, number, raw, 0)[:_CHECKED]
    return b"%b%b%b" % (head, crc32(payload, crc32(head)).to_bytes(4, "big"), payload)


def content_size(chunk: bytes) -> int:
    """Bytes of its content, as its header says; for whoever meters them."""
    raw: int = CHUNK_HEAD.unpack_from(chunk)[4]
    return raw


def kind_of(chunk: bytes) -> int:
    """Its `ChunkKind`, as its header says."""
    return chunk[1]


def decode_chunk(data: bytes) -> Chunk:
    """Check and unpack. Raises `Corruption` for all that `encode_chunk` doesn't write."""
    try:
        version, kind, _, number, raw, crc = CHUNK_HEAD.unpack_from(data)
    except error:
        raise Corruption("a chunk is cut short") from None
    payload = memoryview(data)[CHUNK_HEAD.size :]
    if version != CHUNK_VERSION or kind not in (ChunkKind.HEAD, ChunkKind.ROWS, ChunkKind.END):
        raise Corruption(f"a chunk has version {version}, kind {kind}; this build knows version {CHUNK_VERSION}")
    if crc32(payload, crc32(data[:_CHECKED])) != crc:
        raise Corruption(f"chunk {number} fails its CRC")
    content = _unpack(payload, raw, number) if kind == ChunkKind.ROWS else bytes(payload)
    if len(content) != raw:
        raise Corruption(f"chunk {number} holds {len(content)} bytes instead of {raw}")
    return Chunk(ChunkKind(kind), number, content)


def _unpack(payload: memoryview, raw: int, number: int) -> bytes:
    try:
        # Before any memory is taken for it.
        if raw > MAX_CHUNK_BYTES or get_frame_parameters(payload).content_size != raw:
            raise Corruption(f"chunk {number} unpacks to another size than it says, or to more than is taken")
        return ZstdDecompressor().decompress(payload, max_output_size=raw)
    except ZstdError as problem:
        raise Corruption(f"chunk {number} can't be unpacked: {problem}") from problem

"""Message compression of gRPC (its "Compression" page): identity, gzip, deflate and zstd, inflated within a bound.

The bound holds before the memory is taken: 4 KiB of zeros in zstd blow up to 100 MiB otherwise, and a peer need only
send them to each of its streams.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import grpc
import zstandard

from nebuladb.rpc.status import StatusError

Codec = Callable[[bytes], bytes]
Inflate = Callable[[bytes, int], bytes]
"""(compressed, most bytes of the result) → message. Raises `StatusError`."""

IDENTITY: Final = "identity"
GZIP: Final = "gzip"
DEFLATE: Final = "deflate"
ZSTD: Final = "zstd"
ACCEPTED: Final = b"identity,deflate,gzip,zstd"
"""The value of ``grpc-accept-encoding``: what we can inflate."""
BY_ENUM: Final = {
    grpc.Compression.NoCompression: IDENTITY,
    grpc.Compression.Deflate: DEFLATE,
    grpc.Compression.Gzip: GZIP,
}
"""How grpc's own API names them; zstd has no name there."""

MAX_ZSTD_WINDOW: Final = 8 << 20
"""Bytes of history that a zstd frame may ask for, as RFC 8878 recommends: the decoder's memory."""
LEVEL_ZLIB: Final = 6
LEVEL_ZSTD: Final = 3
_GZIP_WINDOW: Final = 31
_ZLIB_WINDOW: Final = 15


def _too_large(limit: int) -> StatusError:
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message inflates to more than the {limit} bytes it may have"
    )


def _damaged(encoding: str) -> StatusError:
    return StatusError(grpc.StatusCode.INTERNAL, f"a message is no {encoding}, or is cut short")


def _deflate(data: bytes, window: int) -> bytes:
    packer = zlib.compressobj(LEVEL_ZLIB, zlib.DEFLATED, window)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, limit: int, window: int, encoding: str) -> bytes:
    unpacker = zlib.decompressobj(window)
    try:
        # One byte more than allowed tells too much from just enough; 0 would mean "no bound" to zlib.
        message = unpacker.decompress(data, limit + 1)
    except zlib.error:
        raise _damaged(encoding) from None
    if len(message) > limit:
        raise _too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise _damaged(encoding)
    return message


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL_ZSTD).compress(data)


def _unzstd(data: bytes, limit: int) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if size > limit:
            raise _too_large(limit)
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        # A frame that names its size can't hold more; the buffer of one that doesn't is `limit` long (0: "no bound").
        return unpacker.decompress(data, max_output_size=max(limit, 1), allow_extra_data=False)
    except zstandard.ZstdError:
        raise (_too_large(limit) if _overflows(data, limit) else _damaged(ZSTD)) from None


def _overflows(data: bytes, limit: int) -> bool:
    """Whether a frame that could not be taken whole holds too much, or was damaged."""
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(data)
    try:
        return len(reader.read(limit + 1)) > limit
    except zstandard.ZstdError:
        return False


_COMPRESS: Final[dict[str, Codec]] = {
    GZIP: lambda data: _deflate(data, _GZIP_WINDOW),
    DEFLATE: lambda data: _deflate(data, _ZLIB_WINDOW),
    ZSTD: _zstd,
}
_INFLATE: Final[dict[str, Inflate]] = {
    GZIP: lambda data, limit: _inflate(data, limit, _GZIP_WINDOW, GZIP),
    DEFLATE: lambda data, limit: _inflate(data, limit, _ZLIB_WINDOW, DEFLATE),
    ZSTD: _unzstd,
}


def compressor(encoding: str) -> Codec | None:
    """What compresses a message for ``grpc-encoding: encoding``; None for identity.

    Raises `ValueError` for one that isn't ours: which one to use is our own side's choice.
    """
    if encoding == IDENTITY:
        return None
    found = _COMPRESS.get(encoding)
    if found is None:
        raise ValueError(f"no compression {encoding!r}; there are {ACCEPTED.decode()}")
    return found


def decompressor(encoding: str) -> Inflate | None:
    """What inflates the messages of a peer that says ``grpc-encoding: encoding``; None for identity.

    Raises `StatusError` UNIMPLEMENTED for one that we don't know; the answer carries ``grpc-accept-encoding`` then.
    """
    if encoding == IDENTITY:
        return None
    found = _INFLATE.get(encoding)
    if found is None:
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"no compression {encoding[:32]!r} here")
    return found

"""gRPC messages in DATA ("Length-Prefixed-Message" of gRPC over HTTP/2): a flag byte, four bytes of length, message.

Message and frame boundaries have nothing to do with each other: one DATA may hold a thousand messages, and one message
may come in a thousand DATA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc

from nebuladb.rpc.compression import Codec, Inflate
from nebuladb.rpc.status import StatusError

PREFIX_BYTES: Final = 5
LARGER: Final = "larger than max"
"""What gRPC says of a message over a limit, by which clients know it."""
_COMPRESSED: Final = 1


class CutError(StatusError):
    """A body ended in the middle of its message, or before it: `begun` says which."""

    def __init__(self, *, begun: bool) -> None:
        # As gRPC for Go says it.
        super().__init__(grpc.StatusCode.INTERNAL, "unexpected EOF" if begun else "EOF")
        self.begun = begun


def frame(message: bytes) -> bytes:
    """`message` behind its prefix, uncompressed. Raises `OverflowError` past 4 GiB."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def frame_compressed(message: bytes, compress: Codec) -> bytes:
    """`message` compressed, behind its prefix; plain if compression gains nothing, which the flag allows."""
    packed = compress(message)
    if len(packed) >= len(message):
        return frame(message)
    return b"\1" + len(packed).to_bytes(4, "big") + packed


def _checked(flag: int, size: int, max_size: int, inflate: Inflate | None) -> None:
    if flag > _COMPRESSED:
        raise StatusError(grpc.StatusCode.INTERNAL, f"a message has the unknown flags {flag:#04x}")
    if flag and inflate is None:
        raise StatusError(grpc.StatusCode.INTERNAL, "a message is compressed, and no grpc-encoding was named")
    if size > max_size:
        why = f"grpc: received message {LARGER} ({size} vs. {max_size})"  # as gRPC for Go says it
        raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, why)


def unframe(data: bytes, max_size: int, inflate: Inflate | None = None) -> bytes:
    """The one message that is all of `data`: a unary request or response that came whole.

    Raises `StatusError`: `CutError` for none or a part of one, INTERNAL for more; else as `MessageReader.feed`.
    """
    if len(data) < PREFIX_BYTES:
        raise CutError(begun=bool(data))
    flag, size = data[0], int.from_bytes(data[1:PREFIX_BYTES], "big")
    _checked(flag, size, max_size, inflate)
    if size > len(data) - PREFIX_BYTES:
        raise CutError(begun=True)
    if size < len(data) - PREFIX_BYTES:
        raise StatusError(grpc.StatusCode.INTERNAL, "a body holds more than the one message that belongs in it")
    message = data[PREFIX_BYTES:]
    return inflate(message, max_size) if flag and inflate is not None else message


class Packed(bytes):
    """A message that a lazy `MessageReader` left compressed; `MessageReader.unpack` makes it bytes."""

    __slots__ = ()


class MessageReader:
    """Cuts messages out of DATA as it comes. Holds less than one message: at most `max_size` bytes and a prefix.

    A `lazy` one leaves compressed messages as they are, as `Packed`, until its owner has use for them. Where messages
    queue up it must be lazy: a window of 64 KiB holds 400 zstd messages of 4 MiB each.
    """

    __slots__ = ("_inflate", "_lazy", "_max_size", "_need", "buffer", "listener")

    def __init__(self, max_size: int, inflate: Inflate | None = None, *, lazy: bool = False) -> None:
        self._max_size = max_size
        self._inflate = inflate
        self._lazy = lazy
        # One growing buffer, and not a list of chunks: two-byte chunks of a 4 MiB message would be 80 MiB of objects.
        self.buffer = bytearray()
        """The part that is here of a message whose rest has not come."""
        self._need = PREFIX_BYTES
        """Bytes that the buffer must hold before there is something to decide: the prefix, then prefix and message."""

        self.listener: Callable[[bytes], None] | None = None
        """Who is given each message, if its owner says so."""

    def offer(self, data: bytes) -> bool:
        """Give the listener the message that `data` is, if it is just one, whole and plain. False: it is not, and
        nothing has happened."""
        size = len(data) - PREFIX_BYTES
        if (
            size < 0
            or data[:PREFIX_BYTES] != b"\0" + size.to_bytes(4, "big")
            or size > self._max_size
            or self.buffer
            or self.listener is None
        ):
            return False
        self.listener(data[PREFIX_BYTES:])
        return True

    def drop(self) -> None:
        """Forget that part: nothing more is fed."""
        self.buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Messages that are complete with `data`, inflated, in order.

        Raises `StatusError`: RESOURCE_EXHAUSTED for one that is, or inflates to, more than `max_size`; INTERNAL for
        unknown flags, a compressed message without an encoding, or one that doesn't inflate. The reader is of no use
        after it.
        """
        messages: list[bytes] = []
        at, end = self._complete(data, messages) if self.buffer else 0, len(data)
        while end - at >= PREFIX_BYTES:
            flag, size = data[at], int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if flag or size > self._max_size:
                _checked(flag, size, self._max_size, self._inflate)
            stop = at + PREFIX_BYTES + size
            if stop > end:
                self._need = PREFIX_BYTES + size
                break
            body = data[at + PREFIX_BYTES : stop]
            messages.append(self._compressed(body) if flag else body)
            at = stop
        if at < end:
            self.buffer += data[at:] if at else data
        return messages

    def _complete(self, data: bytes, messages: list[bytes]) -> int:
        """Finish the message that the buffer began; where the next one begins in `data`."""
        buffer, at = self.buffer, 0
        while True:
            missing = self._need - len(buffer)
            if len(data) - at < missing:
                buffer += data[at:]
                return len(data)
            buffer += data[at : at + missing]
            at += missing
            size = int.from_bytes(buffer[1:PREFIX_BYTES], "big")
            if len(buffer) == PREFIX_BYTES:
                _checked(buffer[0], size, self._max_size, self._inflate)
                if size:
                    self._need = PREFIX_BYTES + size
                    continue
            body = bytes(memoryview(buffer)[PREFIX_BYTES:])
            messages.append(self._compressed(body) if buffer[0] else body)
            # A fresh one: a stream that once carried a large message must not keep its room.
            self.buffer, self._need = bytearray(), PREFIX_BYTES
            return at

    def _compressed(self, body: bytes) -> bytes:
        packed = Packed(body)
        return packed if self._lazy else self.unpack(packed)

    def unpack(self, message: Packed) -> bytes:
        """The message itself. Raises `StatusError` as `feed` does for one that doesn't inflate."""
        assert self._inflate is not None  # _checked: nothing compressed comes in without it
        return self._inflate(message, self._max_size)

    def ended(self) -> None:
        """The body is over. Raises `CutError` if that cut a message."""
        if self.buffer:
            raise CutError(begun=True)

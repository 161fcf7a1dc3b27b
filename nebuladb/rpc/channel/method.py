"""What is the same for all calls of one method: its headers, and how its messages are made and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nebuladb.rpc.compression import ACCEPTED
from nebuladb.rpc.metadata import Fields, MetadataError

MAX_HEADERS: Final = 256
"""Header lists that a method remembers, one a timeout. With the three digits of `format_timeout` a caller with one
deadline needs a few; one with random ones just fills it again and again."""


class Method:
    """A path on a channel. The same header list is the same object, which is what makes its encoding a lookup."""

    __slots__ = ("_base", "_channel", "_channel_base", "_known", "deserializer", "path", "serializer")

    def __init__(
        self,
        path: str,
        base: Fields,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
        channel: object = None,
    ) -> None:
        """`base`: the channel's constant fields. `channel` is held, so that its calls keep it open.

        Raises `MetadataError` if the path can't be sent.
        """
        if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
            raise MetadataError(f"{path!r} is no method: '/package.Service/Method'")
        self.path = path
        self._channel = channel
        self._channel_base = base
        self._base: Fields = (*base[:2], (b":path", path.encode()), *base[2:])
        self._known: dict[tuple[bytes | None, str], Fields] = {}
        self.serializer = serializer
        self.deserializer = deserializer

    def fields(self, timeout: bytes | None, encoding: str, metadata: Fields) -> Fields:
        """The header list of a call."""
        headers = self._known.get((timeout, encoding))
        if headers is None:
            headers = self._base
            if timeout is not None:
                headers += ((b"grpc-timeout", timeout),)
            if encoding:
                headers += ((b"grpc-encoding", encoding.encode()),)
            if len(self._known) >= MAX_HEADERS:
                self._known.clear()
            self._known[timeout, encoding] = headers
        return headers + metadata if metadata else headers

    def renamed(self, path: str) -> Method:
        """The same with another path."""
        return Method(path, self._channel_base, self.serializer, self.deserializer, self._channel)

    def serialize(self, request: Any) -> bytes:
        """The request's bytes. Raises what the serializer raises, and `TypeError` if it gives no bytes."""
        data = self.serializer(request) if self.serializer is not None else request
        if type(data) is not bytes:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"{self.path}: a request must be serialized to bytes, not {type(data).__name__}")
            data = bytes(data)
        return data


def base_fields(scheme: str, authority: str, user_agent: str) -> Fields:
    """A channel's constant fields; `Method` puts its path behind the second one."""
    return (
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", user_agent.encode()),
        (b"grpc-accept-encoding", ACCEPTED),
    )

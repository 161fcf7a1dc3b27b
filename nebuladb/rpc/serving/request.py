"""What a request's header block says, read once a block: clients repeat them, and cached blocks are one object."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc

from nebuladb.rpc import compression, status
from nebuladb.rpc.compression import Codec, Inflate
from nebuladb.rpc.metadata import Fields, MetadataError, Value, decode_metadata, parse_timeout
from nebuladb.rpc.serving.routes import Route, Routes
from nebuladb.rpc.status import StatusError

CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
OK: Final[Fields] = ((b":status", b"200"), CONTENT_TYPE, (b"grpc-accept-encoding", compression.ACCEPTED))
"""The head of every answer. One object, so that the header encoder knows it."""
FIELD_OBJECTS: Final = 120
"""What a header field takes in memory beside its octets and the 32 that RFC 7541 counts: a tuple, and its strings."""
NO_TIME: Final = 1e-6
"""Seconds of a ``grpc-timeout`` in which nothing can be done."""
_METHOD_NOT_ALLOWED: Final[Fields] = ((b":status", b"405"), (b"allow", b"POST"))
_UNSUPPORTED_TYPE: Final[Fields] = ((b":status", b"415"), (b"accept-post", b"application/grpc"))


def refusal(code: grpc.StatusCode, details: str, metadata: Iterable[tuple[str, Value]] | None = None) -> Fields:
    """A trailers-only answer."""
    return OK + status.trailers(code, details, metadata)


class Request:
    """A parsed header block. Shared by all calls that came with it: nothing here changes."""

    __slots__ = (
        "_fields",
        "accepts",
        "answer",
        "cost",
        "decoded",
        "direct",
        "holders",
        "inflate",
        "path",
        "route",
        "timeout",
    )

    def __init__(self, fields: Fields, size: int, routes: Routes) -> None:
        """`size`: octets of the fields, as RFC 7541 4.1 counts them."""
        self._fields = fields
        self.decoded: tuple[tuple[str, Value], ...] | None = None
        """`metadata`, if somebody has asked for it."""
        self.cost = 2 * (size + FIELD_OBJECTS * len(fields))
        """About what it takes in memory, octets, once its metadata was asked for."""
        self.holders = 0
        """Calls that are in progress with it, or have not come whole: the first counts its cost in `Server.headers`,
        the last takes it back."""
        self.path = ""
        self.route: Route | None = None
        """None where `Routes.resolve` must be asked."""
        self.timeout: float | None = None
        """Seconds."""
        self.inflate: Inflate | None = None
        self.accepts: bytes = b""
        """The value of ``grpc-accept-encoding``: what the client can inflate."""
        self.direct: Route | None = None
        """The route, where it is a unary coroutine."""
        self.answer: Fields | None = None
        """What a request that can't become a call is answered with, at once."""
        try:
            self.answer = self._parse(fields) or self._routed(routes)
        except StatusError as error:
            self.answer = refusal(error.code, error.details)
        except MetadataError as error:
            self.answer = refusal(grpc.StatusCode.INTERNAL, str(error))

    def _parse(self, fields: Fields) -> Fields | None:
        method = kind = b""
        binary = False
        for name, value in fields:
            if name == b":path":
                self.path = value.decode("latin-1")
            elif name == b":method":
                method = value
            elif name == b"content-type":
                kind = value
            elif name == b"grpc-timeout":
                self.timeout = parse_timeout(value)
            elif name == b"grpc-encoding" and value:
                self.inflate = compression.decompressor(value.decode("latin-1"))
            elif name == b"grpc-accept-encoding":
                self.accepts = value
            elif name.endswith(b"-bin"):
                binary = True
        if method != b"POST":
            return _METHOD_NOT_ALLOWED
        if not (kind == b"application/grpc" or kind.startswith((b"application/grpc+", b"application/grpc;"))):
            return _UNSUPPORTED_TYPE
        if binary:
            self.metadata()  # what is no base64 is refused before a handler runs
        if self.timeout is not None and self.timeout <= NO_TIME:
            return refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline had passed when the call came")
        return None

    def _routed(self, routes: Routes) -> Fields | None:
        if routes.dynamic:
            return None
        route = self.route = routes.find(self.path)
        if route is None:
            return refusal(grpc.StatusCode.UNIMPLEMENTED, routes.unknown(self.path))
        if route.direct:
            self.direct = route
        return None

    def metadata(self) -> tuple[tuple[str, Value], ...]:
        """The client's metadata, decoded when first asked for."""
        if self.decoded is None:
            self.decoded = tuple(decode_metadata(self._fields))
        return self.decoded

    def takes(self, encoding: str) -> Codec | None:
        """What compresses for this client, if it can inflate `encoding`."""
        names = self.accepts.decode("latin-1").replace(" ", "").split(",")
        return compression.compressor(encoding) if encoding in names else None

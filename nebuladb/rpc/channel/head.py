"""What a header list of an answer means, parsed once a `HeaderBlock`: blocks that repeat are the same object."""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from nebuladb.rpc.compression import IDENTITY, Inflate, decompressor
from nebuladb.rpc.http2.headers import HeaderBlock
from nebuladb.rpc.metadata import Fields, MetadataError, decode_metadata
from nebuladb.rpc.status import HTTP_CODES, Status, StatusError, parse_trailers

CONTENT_TYPE: Final = b"application/grpc"


class Head:
    """The headers or trailers of an answer. Shared between calls: nothing of it is handed out without a copy."""

    __slots__ = ("_status", "accepts", "error", "fields", "inflate", "metadata", "successful")

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.error: StatusError | None = None
        """Why these can't be the first headers of a gRPC answer."""
        self.inflate: Inflate | None = None
        self.accepts: frozenset[str] = frozenset()
        """Encodings that the server takes."""
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()
        self._status: Status | None = None
        found = dict(fields)
        self.successful = found.get(b"grpc-status") == b"0" and b"grpc-message" not in found
        accepts = found.get(b"grpc-accept-encoding")
        if accepts is not None:
            self.accepts = frozenset(name.strip() for name in accepts.decode("latin-1").split(","))
        try:
            self.metadata = tuple(decode_metadata(fields))
            self.inflate = decompressor(found.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1"))
        except MetadataError as error:
            self.error = StatusError(grpc.StatusCode.INTERNAL, str(error))
        except StatusError as error:
            # The spec has INTERNAL for an encoding that the client did not offer.
            self.error = StatusError(grpc.StatusCode.INTERNAL, error.details)
        self._check(found)

    def _check(self, found: dict[bytes, bytes]) -> None:
        http = found.get(b":status", b"200")
        content = found.get(b"content-type", b"")
        if http != b"200" or not content.startswith(CONTENT_TYPE):
            code = HTTP_CODES.get(http, grpc.StatusCode.UNKNOWN)
            what = f"HTTP {http.decode('latin-1')} with content-type {content[:64].decode('latin-1')!r}"
            self.error = StatusError(code, f"the server answered {what}, which is not gRPC")

    @property
    def status(self) -> Status:
        """As the last headers of an answer."""
        if self._status is None:
            try:
                self._status = parse_trailers(self.fields)
            except MetadataError as error:
                self._status = Status(grpc.StatusCode.INTERNAL, str(error), grpc.aio.Metadata())
        return self._status


def head_of(block: HeaderBlock) -> Head:
    """The block's parse, made when it is asked for first."""
    head = block.memo
    if head is None:
        head = block.memo = Head(block.fields)
    return head  # type: ignore[no-any-return]

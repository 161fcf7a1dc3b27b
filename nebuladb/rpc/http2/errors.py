"""Error codes (RFC 9113, section 7), and whose fault an error is."""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """What RST_STREAM and GOAWAY carry."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ProtocolError(Exception):
    """Base of both; `code` is what the peer is, or would be, told."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol or a bound: this connection ends, and nothing else does."""


class LocalProtocolError(ProtocolError):
    """Our own caller asked for what the protocol, or the state of the stream or connection, doesn't allow."""


class StreamError(ProtocolError):
    """The peer broke a rule of one stream, which is reset; inside this package only, for the owner gets
    `StreamReset`."""


class StreamLimit(LocalProtocolError):
    """The peer allows no more streams now; `StreamsAllowed` tells when it does again."""

"""SETTINGS (RFC 9113, section 6.5): what a peer says about itself, checked."""

from __future__ import annotations

from typing import Final

from nebuladb.rpc.http2.errors import ErrorCode, RemoteProtocolError
from nebuladb.rpc.http2.frames import (
    DEFAULT_WINDOW,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    MIN_FRAME_SIZE,
    SETTING,
    settings_frame,
)
from nebuladb.rpc.http2.limits import Limits

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE_SETTING: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_TABLE: Final = 4096
UNKNOWN_CONCURRENCY: Final = 100
"""Streams that a client opens before it has seen SETTINGS: a hundred is the least that the RFC recommends to allow."""
NO_LIMIT: Final = (1 << 32) - 1


class PeerSettings:
    """The peer's values, the RFC's defaults until it says otherwise."""

    __slots__ = ("concurrent_streams", "frame_size", "header_list", "header_table", "stream_window")

    def __init__(self) -> None:
        self.header_table = DEFAULT_TABLE
        self.concurrent_streams = UNKNOWN_CONCURRENCY
        self.stream_window = DEFAULT_WINDOW
        self.frame_size = MIN_FRAME_SIZE
        self.header_list = NO_LIMIT

    def apply(self, payload: bytes, *, from_server: bool) -> None:
        """Take over a SETTINGS frame's payload, later values over earlier ones.

        Raises:
            RemoteProtocolError: a value that the RFC forbids; FRAME_SIZE_ERROR if it is no sequence of settings.
        """
        if len(payload) % SETTING.size:
            raise RemoteProtocolError("SETTINGS of a broken length", ErrorCode.FRAME_SIZE_ERROR)
        for key, value in SETTING.iter_unpack(payload):
            if key == HEADER_TABLE_SIZE:
                self.header_table = value
            elif key == ENABLE_PUSH:
                # Section 6.5.2: a server must not say 1 either.
                if value > (0 if from_server else 1):
                    raise RemoteProtocolError(f"ENABLE_PUSH {value}")
            elif key == MAX_CONCURRENT_STREAMS:
                self.concurrent_streams = value
            elif key == INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise RemoteProtocolError(f"INITIAL_WINDOW_SIZE {value}", ErrorCode.FLOW_CONTROL_ERROR)
                self.stream_window = value
            elif key == MAX_FRAME_SIZE_SETTING:
                if not MIN_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
                    raise RemoteProtocolError(f"MAX_FRAME_SIZE {value}")
                self.frame_size = value
            elif key == MAX_HEADER_LIST_SIZE:
                self.header_list = value


def announcement(limits: Limits, *, client: bool) -> bytes:
    """The SETTINGS frame that says our limits."""
    values = {
        HEADER_TABLE_SIZE: limits.header_table,
        INITIAL_WINDOW_SIZE: limits.stream_window,
        MAX_FRAME_SIZE_SETTING: limits.frame_size,
        MAX_HEADER_LIST_SIZE: limits.header_list,
    }
    values.update({ENABLE_PUSH: 0} if client else {MAX_CONCURRENT_STREAMS: limits.concurrent_streams})
    return settings_frame(values)

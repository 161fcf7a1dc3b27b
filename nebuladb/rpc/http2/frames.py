"""Frames on the wire (RFC 9113, sections 4 and 6): types, flags, and how one is packed."""

from __future__ import annotations

from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (section 3.4)."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEAD_SIZE: Final = 9
"""Octets of a frame's head."""
MIN_FRAME_SIZE: Final = 1 << 14
"""The payload that every peer takes, and SETTINGS_MAX_FRAME_SIZE's least and first value."""
MAX_FRAME_SIZE: Final = (1 << 24) - 1
MAX_WINDOW: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = (1 << 16) - 1
MAX_STREAM_ID: Final = (1 << 31) - 1

HEAD: Final = Struct(">IBI")
"""(length << 8 | type, flags, stream): one unpack where the RFC's five fields would be three with shifts."""
WORD: Final = Struct(">I")
SETTING: Final = Struct(">HI")
_GOAWAY: Final = Struct(">IBIII")
_HEAD_AND_WORD: Final = Struct(">IBII")

SETTINGS_ACK: Final = HEAD.pack(SETTINGS, ACK, 0)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def reset_frame(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return _HEAD_AND_WORD.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def window_update_frame(stream_id: int, size: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return _HEAD_AND_WORD.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, size)


def settings_frame(values: dict[int, int]) -> bytes:
    """SETTINGS of identifier → value."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in values.items()))


def goaway_frame(last: int, code: int, debug: bytes = b"") -> bytes:
    """GOAWAY."""
    return _GOAWAY.pack((8 + len(debug)) << 8 | GOAWAY, 0, 0, last, code) + debug


def header_frames(stream_id: int, block: bytes, size: int, *, end: bool) -> bytes:
    """HEADERS, and as many CONTINUATIONs as a block longer than `size` takes."""
    first = END_STREAM if end else 0
    if len(block) <= size:
        return frame(HEADERS, END_HEADERS | first, stream_id, block)
    parts = [frame(HEADERS, first, stream_id, block[:size])]
    for at in range(size, len(block), size):
        flags = END_HEADERS if at + size >= len(block) else 0
        parts.append(frame(CONTINUATION, flags, stream_id, block[at : at + size]))
    return b"".join(parts)

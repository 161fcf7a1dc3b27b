"""Bytes that the tests of a node give and look into."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nebuladb.node import frame as frames
from nebuladb.node.frame import ADDRESS, Address, Envelope
from nebuladb.pb.nebula.v1 import kv_pb2


def put_request(key: bytes, value: bytes) -> bytes:
    """A put's bytes."""
    return kv_pb2.PutRequest(key=key, value=value).SerializeToString()


def decode_frame(frame: bytes) -> tuple[Address, list[Envelope]]:
    """All of a frame but its status; raises as the package's own."""
    _, envelopes = frames.decode_frame(frame)
    return Address(*struct.unpack(">5Q", frame[ADDRESS])), envelopes


def encode_frame(address: bytes, envelopes: Sequence[Envelope]) -> bytes:
    """What fits into one frame."""
    [frame] = frames.encode_frames(address, envelopes)
    return frame

"""Bytes that the tests of a node give and look into."""

from __future__ import annotations

import struct

from nebuladb.node.frame import Address, Envelope, decode_messages, frame_address
from nebuladb.pb.nebula.v1 import kv_pb2


def put_request(key: bytes, value: bytes) -> bytes:
    """A put's bytes."""
    return kv_pb2.PutRequest(key=key, value=value).SerializeToString()


def decode_frame(frame: bytes) -> tuple[Address, list[Envelope]]:
    """All of a frame; raises as `decode_messages`."""
    envelopes = decode_messages(frame)
    return Address(*struct.unpack(">5Q", frame_address(frame))), envelopes

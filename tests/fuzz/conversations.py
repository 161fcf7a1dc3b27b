"""Octets that a peer may send, right ones and wrong ones, from a seed."""

from __future__ import annotations

import random
from typing import Final

from nebuladb.rpc.http2 import Connection, Fields, Limits, LocalProtocolError, Stream
from nebuladb.rpc.http2 import frames as wire
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS

FUZZ_LIMITS: Final = Limits(
    concurrent_streams=8,
    stream_window=4096,
    connection_window=1 << 16,
    header_list=1024,
    header_fields=24,
    header_block=2048,
    header_table=512,
    continuations=3,
    waiting_bytes=1 << 16,
    remembered_resets=8,
    answers=64,
)
"""Small, so that mutations get over them."""

STEPS: Final = 12
"""Things that happen in a conversation, at most."""
_SIZES: Final = (*(0, 1, 5, 20, 60, 255) * 4, 2000, 5000)
_NAMES: Final = (
    b"grpc-timeout",
    b"authorization",
    b"x-trace",
    b"content-length",
    b"te",
    b"X-Upper",
    b":path",
    b"x-bin",
)
_VALUES: Final = (b"1S", b"Bearer abc", b"0", b"7", b"trailers", b"", b"a" * 300, b"\r\n", b" x")


def fields_of(rng: random.Random, base: Fields) -> Fields:
    """A header list, more often right than wrong."""
    if rng.random() < 0.6:
        return base
    more = tuple((rng.choice(_NAMES), rng.choice(_VALUES)) for _ in range(rng.randrange(1, 3)))
    return more + base if rng.random() < 0.1 else base + more


def random_frame(rng: random.Random) -> bytes:
    """A frame whose parts are likely ones, each by itself."""
    kind = rng.choice((*range(10), 10, 200))
    stream_id = rng.choice((0, 1, 2, 3, 5, 7, 9, 99, wire.MAX_STREAM_ID))
    size = rng.choice((0, 1, 4, 5, 6, 8, 12, 40))
    flags = rng.choice((0, 1, 4, 5, 8, 9, 0x20, 0x2D, 0xFF))
    payload = bytes(
        rng.choice((0, 0, 1, 4, 0x3F, 0x40, 0x80, 0x82, 0x84, 0xBE, 0xFF, rng.randrange(256))) for _ in range(size)
    )
    return wire.frame(kind, flags, stream_id, payload)


def client_says(rng: random.Random) -> bytes:
    """A client's side of a conversation whose server never answers but by settings."""
    client = Connection(client=True, limits=FUZZ_LIMITS)
    table = {1: FUZZ_LIMITS.header_table}
    client.receive(wire.settings_frame(table | {4: rng.choice((0, 1, 4096, 65535))}) + wire.SETTINGS_ACK, 0.0)
    client.receive(wire.window_update_frame(0, 1 << 20), 0.0)
    said = [client.take()]
    streams: list[Stream] = []
    for _ in range(rng.randrange(1, STEPS)):
        act = rng.random()
        try:
            if act < 0.45:
                streams.append(client.call(fields_of(rng, REQUEST), rng.randbytes(rng.choice(_SIZES))))
            elif act < 0.6:
                streams.append(client.open(fields_of(rng, REQUEST)))
            elif streams and act < 0.8:
                client.send_data(rng.choice(streams), rng.randbytes(rng.choice(_SIZES)), end=rng.random() < 0.3)
            elif streams and act < 0.85:
                client.reset(rng.choice(streams), rng.choice((0, 8)))  # type: ignore[arg-type]
            elif act < 0.96:
                client.ping(rng.randbytes(8))
            else:
                said.append(random_frame(rng))
        except LocalProtocolError:
            pass
        said.append(client.take())
        if rng.random() < 0.2:
            client.receive(wire.window_update_frame(1, 4096), 0.0)
    return b"".join(said)


def server_says(rng: random.Random) -> bytes:
    """A server's answers to streams 1, 3, 5, …"""
    server = Connection(client=False, limits=FUZZ_LIMITS)
    table = {1: FUZZ_LIMITS.header_table}
    hello = wire.PREFACE + wire.settings_frame(table | {4: rng.choice((1, 4096, 65535))}) + wire.SETTINGS_ACK
    server.receive(hello, 0.0)
    said = [server.take()]
    streams: list[Stream] = []
    client = Connection(client=True)
    client.receive(wire.settings_frame(table), 0.0)
    client.take()
    for _ in range(rng.randrange(1, STEPS)):
        act = rng.random()
        try:
            if act < 0.4 or not streams:
                opened = client.call(REQUEST, b"x")
                server.receive(client.take(), 0.0)
                if opened.id in server.streams:
                    streams.append(server.streams[opened.id])
                continue
            stream = rng.choice(streams)
            if act < 0.5:
                server.respond(
                    stream, fields_of(rng, RESPONSE), rng.randbytes(rng.choice(_SIZES)), fields_of(rng, TRAILERS)
                )
            elif act < 0.65:
                server.send_headers(stream, fields_of(rng, RESPONSE), end=rng.random() < 0.2)
            elif act < 0.8:
                server.send_data(stream, rng.randbytes(rng.choice(_SIZES)), end=rng.random() < 0.2)
            elif act < 0.85:
                server.shutdown()
            elif act < 0.96:
                server.ping(rng.randbytes(8))
            else:
                said.append(random_frame(rng))
        except LocalProtocolError:
            pass
        said.append(server.take())
    return b"".join(said)


def mutate(rng: random.Random, octets: bytes, other: bytes) -> bytes:
    """A few of: an octet changed, a piece lost, doubled or foreign, a frame put in, the end cut off."""
    data = bytearray(octets)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 4, 9, 13, 40))
        what = rng.randrange(6)
        if what == 0 and at < len(data):
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)))
        elif what == 1:
            del data[at : at + size]
        elif what == 2:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 20))
        elif what == 3:
            start = rng.randrange(len(other) + 1)
            data[at:at] = other[start : start + size]
        elif what == 4:
            data[at:at] = random_frame(rng)
        else:
            del data[max(at, 60) :]
    return bytes(data)

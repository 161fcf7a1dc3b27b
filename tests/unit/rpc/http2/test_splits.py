"""Any split of any valid sequence of octets gives the same events, on both sides."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.rpc.http2 import Connection, ErrorCode, Event, LocalProtocolError, State, Stream
from nebuladb.rpc.http2 import frames as wire
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS, meaning

SEEDS = st.integers(0, 2**32)
ACTS = ("call", "call", "call", "other call", "open", "data", "data", "end", "trailers", "reset", "ping", "padded")


def client_says(seed: int, length: int) -> bytes:
    """What a client says that keeps to the protocol, in `length` acts."""
    rng = random.Random(seed)
    client = Connection(client=True)
    client.receive(wire.settings_frame({}) + wire.SETTINGS_ACK + wire.window_update_frame(0, 1 << 24), 0.0)
    said = [client.take()]
    streams: list[Stream] = []
    for _ in range(length):
        act = rng.choice(ACTS)
        body = rng.randbytes(rng.choice((1, 5, 100, 3000)))
        stream = rng.choice(streams) if streams else None
        try:
            if act == "call":
                client.call(REQUEST, body)
            elif act == "other call":
                client.call((*REQUEST, (b"grpc-timeout", b"%dm" % rng.randrange(100))), body)
            elif act == "ping":
                client.ping(bytes(8))
            elif act == "open" or stream is None:
                streams.append(client.open(REQUEST, end=rng.random() < 0.2))
            elif act in ("data", "end"):
                client.send_data(stream, body, end=act == "end")
            elif act == "trailers":
                client.send_headers(stream, ((b"x-checksum", b"1"),), end=True)
            elif act == "padded" and stream.state in (State.OPEN, State.HALF_CLOSED_REMOTE):
                said.append(client.take())
                said.append(wire.frame(wire.DATA, wire.PADDED, stream.id, b"\x03" + body + bytes(3)))
            elif act == "reset":
                client.reset(stream, rng.choice((ErrorCode.NO_ERROR, ErrorCode.CANCEL)))
        except LocalProtocolError:
            pass
        said.append(client.take())
    return b"".join(said)


def server_says(seed: int, length: int) -> bytes:
    """What a server says to `length` calls, each answered somehow."""
    rng = random.Random(seed)
    server, client = Connection(client=False), Connection(client=True)
    server.receive(client.take(), 0.0)
    client.receive(server.take(), 0.0)
    server.receive(client.take() + wire.window_update_frame(0, 1 << 24), 0.0)
    said = [wire.settings_frame({}), server.take()]
    for _ in range(length):
        call = client.call(REQUEST, b"x")
        server.receive(client.take(), 0.0)
        stream = server.streams[call.id]
        body = rng.randbytes(rng.choice((1, 5, 100, 3000)))
        way = rng.randrange(6)
        if way == 0:
            server.send_headers(stream, (*RESPONSE, *TRAILERS), end=True)
        elif way == 1:
            server.reset(stream, ErrorCode.REFUSED_STREAM)
        elif way == 2:
            server.send_headers(stream, RESPONSE)
            for _ in range(3):
                server.send_data(stream, body)
            server.send_headers(stream, TRAILERS, end=True)
        else:
            server.respond(stream, RESPONSE, body, TRAILERS)
        if rng.random() < 0.5:
            said.append(server.take())
    if rng.random() < 0.3:
        server.shutdown()
    said.append(server.take())
    return b"".join(said)


def heard(connection: Connection, octets: bytes, marks: list[int]) -> list[object]:
    """What the owner is told of the octets, cut at the marks."""
    events: list[Event] = []
    for start, end in zip([0, *marks], [*marks, len(octets)], strict=True):
        events += connection.receive(octets[start:end], 0.0)
        connection.check()
    assert not connection.closed
    return list(meaning(events))


def waiting_client(calls: int, *, whole: bool) -> Connection:
    """A client with calls under way."""
    client = Connection(client=True)
    client.whole_responses = whole
    for _ in range(calls):
        client.call(REQUEST, b"x")
    return client


@given(seed=SEEDS, length=st.integers(1, 12), data=st.data())
@settings(deadline=None, max_examples=100)
def test_requests(seed: int, length: int, data: st.DataObject) -> None:
    octets = client_says(seed, length)
    marks = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=8)))
    expected = heard(Connection(client=False), octets, [])
    assert heard(Connection(client=False), octets, marks) == expected
    if len(octets) < 2_000:
        assert heard(Connection(client=False), octets, list(range(len(octets)))) == expected


@given(seed=SEEDS, length=st.integers(1, 10), data=st.data())
@settings(deadline=None, max_examples=100)
def test_responses(seed: int, length: int, data: st.DataObject) -> None:
    octets = server_says(seed, length)
    marks = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=8)))
    expected = heard(waiting_client(length, whole=False), octets, [])
    assert heard(waiting_client(length, whole=True), octets, []) == expected
    assert heard(waiting_client(length, whole=True), octets, marks) == expected
    if len(octets) < 2_000:
        assert heard(waiting_client(length, whole=True), octets, list(range(len(octets)))) == expected

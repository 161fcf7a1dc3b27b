"""Both ends of a connection in memory, raw frames, and what an owner was told, whichever way the octets were cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from nebuladb.rpc.http2 import (
    Connection,
    ConnectionEnded,
    DataReceived,
    ErrorCode,
    Event,
    Fields,
    GoingAway,
    HeadersReceived,
    Limits,
    PingAcknowledged,
    ResponseReceived,
    StreamReset,
    StreamsAllowed,
    Writable,
)
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.encoder import HeaderEncoder

REQUEST: Final[Fields] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/nebula.v1.KV/Put"),
    (b":authority", b"127.0.0.1:7379"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"test"),
)
RESPONSE: Final[Fields] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: Final[Fields] = ((b"grpc-status", b"0"),)
HELLO: Final = wire.PREFACE + wire.settings_frame({})
"""What a client may say first."""

T = TypeVar("T")


class Ends:
    """A client and a server, and what each was told."""

    def __init__(self, *, client: Limits | None = None, server: Limits | None = None) -> None:
        self.client = Connection(client=True, limits=client)
        self.server = Connection(client=False, limits=server)
        self.at_client: list[Event] = []
        self.at_server: list[Event] = []
        self.now = 0.0

    def settle(self) -> None:
        """Carry octets both ways until there are none."""
        while True:
            up, down = self.client.take(), self.server.take()
            if not up and not down:
                return
            self.at_server += self.server.receive(up, self.now)
            self.at_client += self.client.receive(down, self.now)
            self.client.check()
            self.server.check()

    def told(self) -> tuple[list[Event], list[Event]]:
        """(at the client, at the server) since the last time."""
        told = self.at_client, self.at_server
        self.at_client, self.at_server = [], []
        return told


def only(events: Iterable[Event], kind: type[T]) -> list[T]:
    """Those of one type."""
    return [event for event in events if isinstance(event, kind)]


def settled(*, client: Limits | None = None, server: Limits | None = None) -> Ends:
    """Ends that know each other's settings."""
    ends = Ends(client=client, server=server)
    ends.settle()
    assert ends.client.ready
    assert ends.server.ready
    assert ends.told() == ([], [])
    return ends


def greeted(limits: Limits | None = None) -> Connection:
    """A server whose client has said hello and acknowledged the server's settings."""
    server = Connection(client=False, limits=limits)
    assert server.receive(HELLO + wire.SETTINGS_ACK, 0.0) == []
    server.take()
    return server


def called(limits: Limits | None = None) -> tuple[Connection, int]:
    """A client with a call under way, and its stream's id."""
    client = Connection(client=True, limits=limits)
    client.receive(wire.settings_frame({}) + wire.SETTINGS_ACK, 0.0)
    stream = client.call(REQUEST, b"x")
    client.take()
    return client, stream.id


def headers_frame(stream_id: int, fields: Fields, *, end: bool = False, encoder: HeaderEncoder | None = None) -> bytes:
    """HEADERS of `fields`, by an encoder of its own that nobody else uses: all literals or static."""
    block = (encoder or HeaderEncoder()).encode(fields)
    return wire.header_frames(stream_id, block, wire.MIN_FRAME_SIZE, end=end)


def data_frame(stream_id: int, data: bytes, *, end: bool = False) -> bytes:
    """DATA."""
    return wire.frame(wire.DATA, wire.END_STREAM if end else 0, stream_id, data)


def ended_with(events: list[Event], code: ErrorCode) -> bool:
    """The last event ends the connection with `code`."""
    return bool(events) and isinstance(events[-1], ConnectionEnded) and events[-1].code is code


Told = tuple[str, int, object]


def _one(event: Event) -> list[Told]:
    if isinstance(event, HeadersReceived):
        told: list[Told] = [("headers", event.stream.id, event.headers.fields)]
        if event.data:
            told.append(("data", event.stream.id, event.data))
        return told + [("end", event.stream.id, None)] * event.ended
    if isinstance(event, ResponseReceived):
        key = event.stream.id
        headers, trailers = event.headers.fields, event.trailers.fields
        return [("headers", key, headers), ("data", key, event.data), ("headers", key, trailers), ("end", key, None)]
    if isinstance(event, DataReceived):
        told = [("data", event.stream.id, event.data)] if event.data else []
        return told + [("end", event.stream.id, None)] * event.ended
    if isinstance(event, StreamReset):
        return [("reset", event.stream.id, (event.code, event.unprocessed))]
    if isinstance(event, Writable):
        return [("writable", event.stream.id, None)]
    if isinstance(event, StreamsAllowed):
        return [("allowed", 0, None)]
    if isinstance(event, PingAcknowledged):
        return [("pong", 0, event.payload)]
    if isinstance(event, GoingAway):
        return [("going away", event.last, (event.code, event.debug))]
    return [("ended", 0, (event.code, event.message))]


def meaning(events: Iterable[Event]) -> list[Told]:
    """Events as what they say, alike for all ways to cut the same octets."""
    told: list[Told] = []
    for event in events:
        for one in _one(event):
            kind, key, what = one
            if kind == "data" and told and told[-1][:2] == (kind, key):
                before = told.pop()[2]
                assert isinstance(before, bytes)
                assert isinstance(what, bytes)
                one = (kind, key, before + what)
            told.append(one)
    return told

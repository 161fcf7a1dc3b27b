"""Both ends of a connection in memory, and the headers of a unary call."""

from __future__ import annotations

from typing import Final, TypeVar

from nebuladb.rpc.http2 import Connection, Event, Limits

REQUEST: Final = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/nebula.v1.KV/Put"),
    (b":authority", b"127.0.0.1:7379"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"test"),
)
RESPONSE: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: Final = ((b"grpc-status", b"0"),)

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


def only(events: list[Event], kind: type[T]) -> list[T]:
    """Those of one type."""
    return [event for event in events if isinstance(event, kind)]


def settled(*, client: Limits | None = None, server: Limits | None = None) -> Ends:
    """Ends that know each other's settings."""
    ends = Ends(client=client, server=server)
    ends.settle()
    assert ends.client.ready
    assert ends.server.ready
    return ends

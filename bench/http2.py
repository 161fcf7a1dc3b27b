"""What the HTTP/2 connection costs a call, without any socket: ``python -m bench.http2 --rounds 2000``.

Prints one line of key=value pairs: microseconds a call (the best of all rounds, each of one buffer with 32 calls,
requests and answers of 64 octets) for a server (receive, respond, take), for a client (call and take; receive), for
calls with a header of their own each (`timeouts`), and for a message of 20 octets in the middle of a stream.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Final

from nebuladb.rpc.http2 import Connection, DataReceived, Fields, HeadersReceived

CALLS: Final = 32
BODY: Final = b"x" * 64
MESSAGE: Final = b"m" * 20
REQUEST: Final[Fields] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/nebula.v1.KV/Put"),
    (b":authority", b"127.0.0.1:7379"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"bench"),
)
RESPONSE: Final[Fields] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: Final[Fields] = ((b"grpc-status", b"0"),)


class Bench:
    """Two ends, and the best time of each step."""

    def __init__(self) -> None:
        self.client = Connection(client=True)
        self.client.whole_responses = True
        self.server = Connection(client=False)
        self.best: dict[str, float] = {}
        self._numbers = itertools.count()
        self._stream = self.client.open(REQUEST)

    def note(self, what: str, began: float, ended: float) -> None:
        """A step's time, microseconds a call."""
        spent = (ended - began) / CALLS * 1e6
        self.best[what] = min(self.best.get(what, spent), spent)

    def settle(self) -> None:
        """What is left in the outputs."""
        while (up := self.client.take()) + (down := self.server.take()):
            self.server.receive(up, 0.0)
            self.client.receive(down, 0.0)

    def unary(self, *, timeouts: bool) -> None:
        """A buffer of calls there and back."""
        headers = [REQUEST] * CALLS
        if timeouts:
            headers = [(*REQUEST, (b"grpc-timeout", b"%du" % next(self._numbers))) for _ in headers]
        clock = time.perf_counter
        times = [clock()]
        for fields in headers:
            self.client.call(fields, BODY)
        octets = self.client.take()
        times.append(clock())
        events = self.server.receive(octets, 0.0)
        times.append(clock())
        for event in events:
            assert isinstance(event, HeadersReceived)
            self.server.respond(event.stream, RESPONSE, BODY, TRAILERS)
        times.append(clock())
        octets = self.server.take()
        times.append(clock())
        self.client.receive(octets, 0.0)
        times.append(clock())
        assert len(events) == CALLS
        if timeouts:
            self.note("timeouts_call", times[0], times[1])
            self.note("timeouts_receive", times[1], times[2])
        else:
            steps = ("client_call", "server_receive", "server_respond", "server_take", "client_receive")
            for step, (began, ended) in zip(steps, itertools.pairwise(times), strict=True):
                self.note(step, began, ended)
            self.note("server", times[1], times[4])
            self.note("client", times[0] + times[4], times[1] + times[5])
        self.settle()

    def messages(self) -> None:
        """A buffer of messages on one stream."""
        clock = time.perf_counter
        times = [clock()]
        for _ in range(CALLS):
            self.client.send_data(self._stream, MESSAGE)
        octets = self.client.take()
        times.append(clock())
        events = self.server.receive(octets, 0.0)
        for event in events:
            if isinstance(event, DataReceived):
                self.server.consumed(event.stream, len(event.data))
        times.append(clock())
        self.note("message_send", times[0], times[1])
        self.note("message_receive", times[1], times[2])
        self.settle()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2_000)
    options = parser.parse_args()
    bench = Bench()
    bench.settle()
    for _ in range(options.rounds):
        bench.unary(timeouts=False)
        bench.messages()
    for _ in range(options.rounds // 4):
        bench.unary(timeouts=True)
    print(" ".join(f"{what}={spent:.2f}" for what, spent in bench.best.items()))


if __name__ == "__main__":
    main()

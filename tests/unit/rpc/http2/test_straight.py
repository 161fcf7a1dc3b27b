"""A stream that goes straight: reads of one DATA each take a way of their own, and leave what all ways leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.rpc.http2 import Connection, DataReceived, ErrorCode, HeadersReceived, Limits, Stream
from nebuladb.rpc.http2 import frames as wire
from tests.unit.rpc.http2.ends import REQUEST, Ends, data_frame, headers_frame, only, settled

LIMITS = Limits(stream_window=70_000, connection_window=90_000)
PART = data_frame(1, b"a part")


class Straight:
    """A server with a stream whose parts go straight, and what became of them."""

    def __init__(self, *, wants: bool = True) -> None:
        self.ends: Ends = settled(server=LIMITS)
        self.sender = self.ends.client.open(REQUEST)
        self.ends.settle()
        [opened] = only(self.ends.told()[1], HeadersReceived)
        self.stream: Stream = opened.stream
        self.server: Connection = self.ends.server
        self.parts: list[bytes] = []
        self.wants = wants
        self.ways = {True: 0, False: 0}
        """Reads by whether they went straight."""
        self.server.go_straight(self.stream, self.offer)

    def offer(self, data: bytes) -> bool:
        if self.wants:
            self.parts.append(data)
        return self.wants

    def read(self, data: bytes) -> None:
        """As a connection does it; its owner consumes parts as they come."""
        straight = self.server.part(data)
        self.ways[straight] += 1
        if not straight:
            for event in self.server.receive(data, 0.0):
                assert type(event) is DataReceived
                self.server.consumed(event.stream, len(event.data))
                self.parts.append(event.data)
        self.server.check()

    def state(self) -> tuple[object, ...]:
        server, stream = self.server, self.stream
        return server._taken, server._unread, stream.taken, stream.unread, server._rest, list(self.parts), server.take()


@given(st.lists(st.integers(1, 20_000), max_size=60), st.lists(st.integers(1, 30), max_size=20))
def test_whatever_way_a_read_takes_the_body_is_the_same_and_windows_come_back(
    sizes: list[int], cuts: list[int]
) -> None:
    one = Straight()
    sent = b""
    for number, size in enumerate(sizes):
        part = bytes([number % 251]) * min(size, one.ends.client._frame_out)
        one.ends.client.send_data(one.sender, part)
        sent += part
        assert not one.sender.waiting, "the sender has room, since all that came was consumed"
        octets = one.ends.client.take()
        cut = cuts[number % len(cuts)] if cuts and number % 3 == 2 else len(octets)
        for piece in (octets[:cut], octets[cut:]):
            if piece:
                one.read(piece)
        assert one.ends.client.receive(one.server.take(), 0.0) == []
        one.ends.client.check()
    assert b"".join(one.parts) == sent
    assert one.server._unread == 0


def test_a_part_that_comes_alone_goes_straight_and_makes_nothing() -> None:
    one = Straight()
    one.ends.client.send_data(one.sender, b"a part")
    assert one.server.part(one.ends.client.take())
    assert one.parts == [b"a part"]
    one.server.check()
    assert one.state()[:4] == (6, 0, 6, 0)
    assert one.server.receive(b"", 0.0) == []


def _unwanted(one: Straight) -> bytes:
    one.wants = False
    return PART


def _closed(one: Straight) -> bytes:
    one.server.close()
    return PART


CASES: dict[str, Callable[[Straight], bytes]] = {
    "nobody wants it": _unwanted,
    "another stream's": lambda one: data_frame(3, b"a part"),
    "its end": lambda one: data_frame(1, b"a part", end=True),
    "padded": lambda one: wire.frame(wire.DATA, wire.PADDED, 1, b"\x01ab"),
    "no DATA": lambda one: headers_frame(1, REQUEST),
    "empty": lambda one: data_frame(1, b""),
    "not whole": lambda one: PART[:-1],
    "two of them": lambda one: PART + PART,
    "a head alone": lambda one: PART[:5],
    "nothing": lambda one: b"",
    "behind half a frame": lambda one: (one.server.receive(PART[:4], 0.0), PART)[1],
    "behind half a header block": lambda one: (
        one.server.receive(wire.frame(wire.HEADERS, 0, 3, headers_frame(3, REQUEST)[9:12]), 0.0), PART)[1],
    "behind one that nobody has consumed": lambda one: (one.server.receive(PART, 0.0), PART)[1],
    "the connection is closed": _closed,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whatever_differs_in_anything_goes_the_other_ways_and_nothing_has_happened(case: str) -> None:
    one = Straight()
    data = CASES[case](one)
    one.server.take()
    before = one.state()
    assert not one.server.part(data)
    assert one.state() == before
    one.server.check()


def test_a_stream_that_was_reset_goes_nowhere() -> None:
    one = Straight()
    one.server.reset(one.stream, ErrorCode.CANCEL)
    assert not one.server.part(PART)
    assert not one.parts


def test_what_would_owe_the_peer_window_goes_the_other_ways() -> None:
    """The way makes no output, and a part must not wait for the next one to give its window back."""
    one = Straight()
    part = data_frame(1, bytes(10_000))
    for _ in range(3):
        one.read(part)
        assert not one.server._out
    one.read(part)
    assert one.ways == {True: 3, False: 1}
    assert one.server.take(), "a WINDOW_UPDATE"


def test_a_frame_larger_than_we_announced_is_an_error_as_ever() -> None:
    one = Straight()
    part = data_frame(1, bytes(LIMITS.frame_size + 1))
    assert not one.server.part(part)
    assert one.server.receive(part, 0.0)
    assert one.server.closed

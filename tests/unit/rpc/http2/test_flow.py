"""Flow control, both ways (RFC 9113, section 6.9)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nebuladb.rpc.http2 import (
    Connection,
    DataReceived,
    ErrorCode,
    HeadersReceived,
    Limits,
    LocalProtocolError,
    StreamReset,
    Writable,
)
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.core import LARGEST_FRAME
from tests.unit.rpc.http2.ends import (
    HELLO,
    REQUEST,
    RESPONSE,
    TRAILERS,
    data_frame,
    ended_with,
    greeted,
    headers_frame,
    only,
    settled,
)

MIB = 1 << 20


def split(octets: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of whole frames."""
    found = []
    while octets:
        head, flags, stream_id = wire.HEAD.unpack_from(octets)
        found.append((head & 0xFF, flags, stream_id, octets[9 : 9 + (head >> 8)]))
        octets = octets[9 + (head >> 8) :]
    return found


def window_of(size: int, *, streams: int = 1) -> Connection:
    """A server whose peer has INITIAL_WINDOW_SIZE `size`, a wide connection, and open requests 1, 3, …"""
    server = Connection(client=False)
    server.receive(wire.PREFACE + wire.settings_frame({4: size}) + wire.SETTINGS_ACK, 0.0)
    server.receive(wire.window_update_frame(0, 1 << 30), 0.0)
    for number in range(streams):
        server.receive(headers_frame(1 + 2 * number, REQUEST, end=True), 0.0)
    server.take()
    return server


def test_a_mebibyte_through_a_window_of_one_octet() -> None:
    body = random.Random(1).randbytes(MIB // 16)
    server = window_of(1)
    stream = server.streams[1]
    server.respond(stream, RESPONSE, body, TRAILERS)
    assert stream.waiting == server.waiting == len(body) - 1
    got = []
    for _ in range(len(body)):
        frames = [payload for kind, _, _, payload in split(server.take()) if kind == wire.DATA]
        assert len(frames) == 1
        got += frames
        # No rate stands in the way: each of these lets an octet go. All at one instant.
        assert server.receive(wire.window_update_frame(1, 1), 0.0) in ([], [Writable(stream)])
        assert server.receive(wire.window_update_frame(0, 1), 0.0) == []
    assert b"".join(got) == body
    assert not server.streams
    assert server.waiting == 0
    server.check()


def test_trailers_wait_behind_the_data() -> None:
    server = window_of(3)
    stream = server.streams[1]
    server.send_headers(stream, RESPONSE)
    server.send_data(stream, b"abcdef")
    server.send_headers(stream, TRAILERS, end=True)
    with pytest.raises(LocalProtocolError):
        server.send_data(stream, b"x")
    assert [payload for kind, _, _, payload in split(server.take()) if kind == wire.DATA] == [b"abc"]
    assert server.receive(wire.window_update_frame(1, 3), 0.0) == [Writable(stream)]
    kinds = [(kind, flags) for kind, flags, _, _ in split(server.take())]
    assert kinds == [(wire.DATA, 0), (wire.HEADERS, wire.END_HEADERS | wire.END_STREAM)]
    assert not server.streams


def test_what_waited_leaves_as_the_owner_takes_it() -> None:
    server = window_of(0)
    stream = server.streams[1]
    server.at_once = 3 * wire.MIN_FRAME_SIZE
    server.send_headers(stream, RESPONSE)
    server.send_data(stream, bytes(65_000))
    server.send_headers(stream, TRAILERS, end=True)
    server.take()
    for size in (1, 64_999):  # of what has come before it is pumped the former counts, too
        assert not server.held_back
        assert server.receive(wire.window_update_frame(1, size), 0.0) == []
    server.check()
    assert server.held_back
    assert sum(len(frame[3]) for frame in split(server.take())) == server.at_once
    assert server.held_back
    assert (server.pump(), server.held_back) == ([Writable(stream)], False)
    kinds = [kind for kind, _, _, _ in split(server.take())]
    assert kinds == [wire.DATA, wire.HEADERS]
    assert not server.streams
    assert server.pump() == []


def test_what_is_held_back_goes_with_its_stream() -> None:
    server = window_of(0)
    stream = server.streams[1]
    server.at_once = 1
    server.send_headers(stream, RESPONSE)
    server.send_data(stream, bytes(65_000))
    server.receive(wire.window_update_frame(1, 65_000), 0.0)
    assert server.held_back
    server.reset(stream, ErrorCode.CANCEL)
    server.check()
    assert server.pump() == []
    assert not server.held_back


def test_the_last_of_what_waits_ends_the_stream() -> None:
    server = window_of(3)
    stream = server.streams[1]
    server.send_headers(stream, RESPONSE)
    server.send_data(stream, b"abcd")
    server.send_data(stream, b"ef", end=True)
    server.take()
    server.receive(wire.window_update_frame(1, 100), 0.0)
    assert [frame[1:] for frame in split(server.take())] == [(0, 1, b"d"), (1, 1, b"ef")]
    assert not server.streams


def test_an_end_without_data_needs_no_window() -> None:
    server = window_of(0)
    server.send_headers(server.streams[1], RESPONSE)
    server.send_data(server.streams[1], b"")
    server.take()
    server.send_data(server.streams[1], b"", end=True)
    assert server.take() == data_frame(1, b"", end=True)


def test_a_changed_initial_window_moves_open_streams_below_zero_too() -> None:
    server = window_of(10)
    stream = server.streams[1]
    server.send_headers(stream, RESPONSE)
    server.send_data(stream, b"a" * 30)
    assert stream.waiting == 20
    server.take()
    # 10 were sent, so that the window is -7 now; 7 more make it 0.
    server.receive(wire.settings_frame({4: 3}) + wire.window_update_frame(1, 7), 0.0)
    server.check()
    assert [frame[0] for frame in split(server.take())] == [wire.SETTINGS]
    server.receive(wire.window_update_frame(1, 1), 0.0)
    assert split(server.take()) == [(0, 0, 1, b"a")]
    server.receive(wire.settings_frame({4: 9}), 0.0)
    assert split(server.take()) == [(wire.SETTINGS, wire.ACK, 0, b""), (0, 0, 1, b"a" * 6)]
    server.check()
    assert stream.waiting == 13


def test_streams_share_the_connections_window_frame_by_frame() -> None:
    server = window_of(MIB, streams=4)
    # Nobody may send anything yet.
    server._granted -= server._window
    server._window = 0
    for stream in list(server.streams.values()):
        server.send_headers(stream, RESPONSE)
        server.send_data(stream, b"z" * 100_000 if stream.id == 1 else b"z" * 40_000)
    server.take()
    for _ in range(8):
        server.receive(wire.window_update_frame(0, 16_384), 0.0)
        server.check()
    order = [stream_id for kind, _, stream_id, _ in split(server.take()) if kind == wire.DATA]
    shares = Counter[int]()
    for stream_id in order:
        shares[stream_id] += 1
    assert set(shares) == {1, 3, 5, 7}
    assert max(shares.values()) - min(shares.values()) <= 1


def test_a_stuck_stream_holds_nobody_up() -> None:
    server = window_of(5, streams=3)
    for stream in list(server.streams.values()):
        server.send_headers(stream, RESPONSE)
        server.send_data(stream, b"q" * 50)
    server.take()
    server.receive(wire.window_update_frame(5, 45), 0.0)
    assert [frame[2:] for frame in split(server.take())] == [(5, b"q" * 45)]
    assert [server.streams[key].waiting for key in (1, 3, 5)] == [45, 45, 0]


def test_large_data_goes_in_the_peers_frames() -> None:
    server = Connection(client=False)
    server.receive(wire.PREFACE + wire.settings_frame({4: MIB, 5: 20_000}) + wire.window_update_frame(0, MIB), 0.0)
    server.receive(headers_frame(1, REQUEST, end=True), 0.0)
    server.take()
    body = random.Random(2).randbytes(100_000)
    server.respond(server.streams[1], RESPONSE, body, TRAILERS)
    frames = [payload for kind, _, _, payload in split(server.take()) if kind == wire.DATA]
    assert [len(payload) for payload in frames] == [20_000] * 5
    assert b"".join(frames) == body
    server.receive(wire.settings_frame({5: MIB}) + headers_frame(3, REQUEST, end=True), 0.0)
    server.take()
    server.respond(server.streams[3], RESPONSE, body, TRAILERS)
    frames = [payload for kind, _, _, payload in split(server.take()) if kind == wire.DATA]
    assert [len(payload) for payload in frames] == [LARGEST_FRAME, 100_000 - LARGEST_FRAME]


def test_a_reset_drops_what_waits() -> None:
    server = window_of(1, streams=2)
    for stream in list(server.streams.values()):
        server.respond(stream, RESPONSE, b"w" * 100, TRAILERS)
    first, second = list(server.streams.values())
    server.reset(first, ErrorCode.CANCEL)
    server.check()
    server.receive(wire.reset_frame(3, 8), 0.0)
    server.check()
    assert (server.waiting, first.waiting, second.waiting) == (0, 0, 0)


# The way in


def test_windows_come_back_in_thrifty_steps() -> None:
    ends = settled(server=Limits(stream_window=1000, connection_window=100_000))
    call = ends.client.open(REQUEST)
    ends.client.send_data(call, b"d" * 1000)
    ends.settle()
    data = only(ends.at_server, DataReceived)
    assert sum(len(event.data) for event in data) == 1000
    ends.client.send_data(call, b"d" * 500)
    assert call.waiting == 500
    stream = data[0].stream
    ends.server.consumed(stream, 499)
    assert ends.server.take() == b""
    ends.server.consumed(stream, 1)
    assert ends.server.take() == wire.window_update_frame(1, 500)
    with pytest.raises(LocalProtocolError):
        ends.server.consumed(stream, 501)


def test_a_stream_that_sends_too_much_is_reset() -> None:
    server = greeted(Limits(stream_window=1000))
    events = server.receive(headers_frame(1, REQUEST) + data_frame(1, b"x" * 1000), 0.0)
    assert [len(event.data) for event in only(events, DataReceived)] == [1000]
    events = server.receive(data_frame(1, b"x"), 0.0)
    assert [event.code for event in only(events, StreamReset)] == [ErrorCode.FLOW_CONTROL_ERROR]
    # All that it sent is given back to the connection, since nobody will consume it.
    assert (server._unread, server._taken) == (0, 1001)


def test_a_unary_request_over_its_window_is_not_let_through_by_the_short_way() -> None:
    server = greeted(Limits(stream_window=1000))
    whole = server.receive(headers_frame(1, REQUEST) + data_frame(1, b"x" * 1001, end=True), 0.0)
    assert [event.code for event in only(whole, StreamReset)] == [ErrorCode.FLOW_CONTROL_ERROR]


def test_the_connection_that_sends_too_much_ends() -> None:
    server = greeted(Limits(connection_window=70_000))
    events = []
    for key in (1, 3, 5, 7, 9):
        events = server.receive(headers_frame(key, REQUEST) + data_frame(key, b"x" * 16_000), 0.0)
    assert ended_with(events, ErrorCode.FLOW_CONTROL_ERROR)


def test_unary_requests_over_the_connections_window_end_it_too() -> None:
    server = greeted(Limits(connection_window=70_000))
    server.receive(headers_frame(1, REQUEST) + data_frame(1, b"x" * 16_000), 0.0)
    octets = b"".join(headers_frame(key, REQUEST) + data_frame(key, b"x" * 16_000, end=True) for key in (3, 5, 7, 9))
    assert ended_with(server.receive(octets, 0.0), ErrorCode.FLOW_CONTROL_ERROR)


def test_until_the_acknowledgement_the_default_window_holds() -> None:
    server = Connection(client=False, limits=Limits(stream_window=100))
    events = server.receive(HELLO + headers_frame(1, REQUEST) + data_frame(1, b"x" * 200), 0.0)
    assert not only(events, StreamReset)
    server.receive(wire.SETTINGS_ACK, 0.0)
    events = server.receive(data_frame(1, b"x"), 0.0)
    assert [event.code for event in only(events, StreamReset)] == [ErrorCode.FLOW_CONTROL_ERROR]


def test_what_is_consumed_after_the_end_still_counts_for_the_connection() -> None:
    server = greeted()
    events = server.receive(
        headers_frame(1, REQUEST) + data_frame(1, b"x" * 10) + data_frame(1, b"y" * 5, end=True), 0.0
    )
    stream = only(events, HeadersReceived)[0].stream
    server.respond(stream, RESPONSE, b"z", TRAILERS)
    assert not server.streams
    assert (server._unread, server._taken) == (15, 0)
    server.consumed(stream, 15)
    assert (server._unread, server._taken) == (0, 15)
    server.check()


def test_two_ends_with_small_windows_carry_everything() -> None:
    rng = random.Random(3)
    limits = Limits(stream_window=700, connection_window=1 << 16)
    ends = settled(client=limits, server=limits)
    bodies = {}
    for _ in range(20):
        body = rng.randbytes(rng.randrange(20_000))
        bodies[ends.client.call(REQUEST, body).id] = body
    echoed: dict[int, bytes] = dict.fromkeys(bodies, b"")
    asked: dict[int, bytes] = dict.fromkeys(bodies, b"")
    while ends.client.streams:
        ends.settle()
        at_client, at_server = ends.told()
        for event in at_server:
            if isinstance(event, HeadersReceived | DataReceived) and event.data:
                asked[event.stream.id] += event.data
            if isinstance(event, DataReceived):
                ends.server.consumed(event.stream, len(event.data))
            if isinstance(event, HeadersReceived | DataReceived) and event.ended:
                ends.server.respond(event.stream, RESPONSE, asked[event.stream.id], TRAILERS)
        for event in at_client:
            if isinstance(event, DataReceived):
                echoed[event.stream.id] += event.data
                ends.client.consumed(event.stream, len(event.data))
        assert at_client or at_server, "nothing moves any more"
    assert asked == echoed == bodies
    assert not ends.server.streams


def test_padding_is_given_back_to_the_stream_too() -> None:
    server = greeted(Limits(stream_window=1_000))
    server.receive(headers_frame(1, REQUEST), 0.0)
    stream = server.streams[1]
    for _ in range(2):
        server.receive(wire.frame(wire.DATA, wire.PADDED, 1, b"\xf9" + b"x" + bytes(249)), 0.0)
        server.consumed(stream, 1)
    assert server.take() == wire.window_update_frame(1, 501), "half a window came together with the second padding"


def test_padding_alone_is_given_back_at_once() -> None:
    """Else a peer that sends nothing else for a while waits for ever for room to go on."""
    server = greeted(Limits(stream_window=1_000))
    server.receive(headers_frame(1, REQUEST), 0.0)
    for _ in range(2):
        server.receive(wire.frame(wire.DATA, wire.PADDED, 1, b"\xfa" + bytes(250)), 0.0)
    assert server.take() == wire.window_update_frame(1, 502)
    assert (server.streams[1].unread, server._unread, server._taken) == (0, 0, 502)


def test_streams_that_nobody_reads_leave_what_they_do_not_hold_to_the_others() -> None:
    ends = settled(server=Limits(stream_window=15_000, connection_window=100_000))
    for _ in range(5):
        ends.client.send_data(ends.client.open(REQUEST), b"h" * 15_000)
    ends.settle()
    held = ends.server._unread
    assert held == 75_000, "three quarters of the window"
    for _ in range(20):
        call = ends.client.call(REQUEST, b"x" * 10_000)
        ends.settle()
        assert call.waiting == 0, "all of it came"
    assert ends.server._unread == held


def test_who_reads_again_gives_all_back_to_whoever_waited() -> None:
    """A connection's window that is held to its last octet opens as soon as one of those who hold it reads."""
    ends = settled(server=Limits(stream_window=25_000, connection_window=100_000))
    for _ in range(4):
        ends.client.send_data(ends.client.open(REQUEST), b"h" * 25_000)
    last = ends.client.call(REQUEST, b"x" * 5_000)
    ends.settle()
    assert (ends.server._unread, last.waiting) == (100_000, 5_000)
    ends.server.consumed(ends.server.streams[1], 10_000)
    ends.settle()
    assert last.waiting == 0

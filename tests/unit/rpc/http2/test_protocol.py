"""What a peer must not do, and the code that it is told. Each case is a sentence of RFC 9113."""

from __future__ import annotations

import pytest

from nebuladb.rpc.http2 import (
    Connection,
    ConnectionEnded,
    DataReceived,
    ErrorCode,
    Fields,
    GoingAway,
    HeadersReceived,
    Limits,
    LocalProtocolError,
    PingAcknowledged,
    StreamLimit,
    StreamReset,
    StreamsAllowed,
)
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.frames import WORD, frame
from tests.unit.rpc.http2.ends import (
    HELLO,
    REQUEST,
    RESPONSE,
    TRAILERS,
    called,
    data_frame,
    ended_with,
    greeted,
    headers_frame,
    meaning,
    only,
    settled,
)

PROTOCOL = ErrorCode.PROTOCOL_ERROR
SIZE = ErrorCode.FRAME_SIZE_ERROR
FLOW = ErrorCode.FLOW_CONTROL_ERROR
CLOSED = ErrorCode.STREAM_CLOSED
CALM = ErrorCode.ENHANCE_YOUR_CALM


def settings(key: int, value: int) -> bytes:
    return wire.settings_frame({key: value})


OPENED = headers_frame(1, REQUEST)

OF_CONNECTION = {
    "frame over MAX_FRAME_SIZE": (frame(0, 0, 1, bytes(16_385)), SIZE),
    "its head is enough": (frame(0, 0, 1, bytes(16_385))[:9], SIZE),
    "DATA on stream 0": (frame(0, 0, 0, b"x"), PROTOCOL),
    "DATA on an idle stream": (frame(0, 0, 1, b"x"), PROTOCOL),
    "DATA on an even stream": (frame(0, 0, 2, b"x"), PROTOCOL),
    "DATA with more padding than frame": (OPENED + frame(0, 8, 1, b"\x02a"), PROTOCOL),
    "DATA without its padding's length": (OPENED + frame(0, 8, 1, b""), SIZE),
    "HEADERS on stream 0": (frame(1, 4, 0, b"\x82"), PROTOCOL),
    "HEADERS on an even stream": (headers_frame(2, REQUEST), PROTOCOL),
    "HEADERS with more padding than frame": (frame(1, 12, 1, b"\x05\x82"), PROTOCOL),
    "HEADERS with a priority cut short": (frame(1, 0x24, 1, b"\0\0\0"), SIZE),
    "HEADERS that depend on themselves": (frame(1, 0x24, 1, b"\0\0\0\x01\0\x82"), PROTOCOL),
    "HEADERS that can't be decoded": (frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "HEADERS on a closed stream": (
        headers_frame(5, REQUEST, end=True) + headers_frame(3, REQUEST, end=True),
        CLOSED,
    ),
    "PRIORITY on stream 0": (frame(2, 0, 0, bytes(5)), PROTOCOL),
    "PRIORITY of a wrong length": (frame(2, 0, 1, bytes(4)), SIZE),
    "PRIORITY on itself": (frame(2, 0, 3, b"\0\0\0\x03\0"), PROTOCOL),
    "RST_STREAM on stream 0": (wire.reset_frame(0, 8), PROTOCOL),
    "RST_STREAM on an idle stream": (wire.reset_frame(1, 8), PROTOCOL),
    "RST_STREAM of a wrong length": (OPENED + frame(3, 0, 1, bytes(3)), SIZE),
    "SETTINGS on a stream": (frame(4, 0, 1), PROTOCOL),
    "SETTINGS of a wrong length": (frame(4, 0, 0, bytes(5)), SIZE),
    "an acknowledgement with content": (frame(4, 1, 0, bytes(6)), SIZE),
    "an acknowledgement of nothing": (wire.SETTINGS_ACK, PROTOCOL),
    "ENABLE_PUSH 2": (settings(2, 2), PROTOCOL),
    "INITIAL_WINDOW_SIZE 2^31": (settings(4, 1 << 31), FLOW),
    "MAX_FRAME_SIZE too small": (settings(5, 16_383), PROTOCOL),
    "MAX_FRAME_SIZE too large": (settings(5, 1 << 24), PROTOCOL),
    "PUSH_PROMISE": (frame(5, 4, 1, bytes(4)), PROTOCOL),
    "PING on a stream": (frame(6, 0, 1, bytes(8)), PROTOCOL),
    "PING of a wrong length": (frame(6, 0, 0, bytes(7)), SIZE),
    "GOAWAY on a stream": (frame(7, 0, 1, bytes(8)), PROTOCOL),
    "GOAWAY of a wrong length": (frame(7, 0, 0, bytes(7)), SIZE),
    "GOAWAY that takes back": (wire.goaway_frame(0, 0) + wire.goaway_frame(2, 0), PROTOCOL),
    "WINDOW_UPDATE of 0": (wire.window_update_frame(0, 0), PROTOCOL),
    "WINDOW_UPDATE of a wrong length": (frame(8, 0, 0, bytes(5)), SIZE),
    "WINDOW_UPDATE on an idle stream": (wire.window_update_frame(1, 1), PROTOCOL),
    "WINDOW_UPDATE over 2^31 - 1": (wire.window_update_frame(0, (1 << 31) - 1), FLOW),
    "INITIAL_WINDOW_SIZE over a stream's 2^31 - 1": (
        headers_frame(1, REQUEST) + wire.window_update_frame(1, (1 << 31) - 1 - 65_535) + settings(4, 65_536),
        FLOW,
    ),
    "CONTINUATION of nothing": (frame(9, 4, 1, b""), PROTOCOL),
    "CONTINUATION of another stream": (frame(1, 0, 1, b"\x82") + frame(9, 4, 3, b""), PROTOCOL),
    "another frame within a header block": (frame(1, 0, 1, b"\x82") + frame(6, 0, 0, bytes(8)), PROTOCOL),
    "an unknown frame within a header block": (frame(1, 0, 1, b"\x82") + frame(99, 0, 0, b""), PROTOCOL),
    "a request within a header block": (frame(1, 0, 1, b"\x82") + headers_frame(3, REQUEST), PROTOCOL),
}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "octet by octet"])
@pytest.mark.parametrize("name", OF_CONNECTION)
def test_the_connection_ends(name: str, *, cut: bool) -> None:
    octets, code = OF_CONNECTION[name]
    server = greeted()
    last = 0
    events = []
    for piece in [octets[at : at + 1] for at in range(len(octets))] if cut else [octets]:
        events += server.receive(piece, 0.0)
        last = server._last_in
    assert ended_with(events, code)
    assert server.closed
    output = server.take()
    at = output.index(frame(7, 0, 0, b"")[3:9])
    assert output[at + 6 : at + 14] == WORD.pack(last) + WORD.pack(code)
    # Nothing is processed or sent any more.
    assert server.receive(headers_frame(99, REQUEST), 0.0) == []
    server.ping(bytes(8))
    server.close()
    assert server.take() == b""


OF_STREAM = {
    "a malformed request": (headers_frame(1, TRAILERS), PROTOCOL),
    "a response at a server": (headers_frame(1, RESPONSE), PROTOCOL),
    "content-length and no DATA": (headers_frame(1, (*REQUEST, (b"content-length", b"1")), end=True), PROTOCOL),
    "more DATA than content-length": (
        headers_frame(1, (*REQUEST, (b"content-length", b"1"))) + data_frame(1, b"ab"),
        PROTOCOL,
    ),
    "less DATA than content-length": (
        headers_frame(1, (*REQUEST, (b"content-length", b"3"))) + data_frame(1, b"ab", end=True),
        PROTOCOL,
    ),
    "trailers before content-length is there": (
        headers_frame(1, (*REQUEST, (b"content-length", b"3"))) + headers_frame(1, TRAILERS, end=True),
        PROTOCOL,
    ),
    "trailers that don't end the stream": (OPENED + headers_frame(1, TRAILERS), PROTOCOL),
    "trailers with a pseudo header": (OPENED + headers_frame(1, RESPONSE, end=True), PROTOCOL),
    "DATA behind the end": (headers_frame(1, REQUEST, end=True) + data_frame(1, b"x"), CLOSED),
    "HEADERS behind the end": (headers_frame(1, REQUEST, end=True) + headers_frame(1, TRAILERS, end=True), CLOSED),
    "WINDOW_UPDATE of 0": (OPENED + wire.window_update_frame(1, 0), PROTOCOL),
    "WINDOW_UPDATE over 2^31 - 1": (OPENED + wire.window_update_frame(1, (1 << 31) - 1), FLOW),
}


@pytest.mark.parametrize("name", OF_STREAM)
def test_the_stream_ends_and_nothing_else(name: str) -> None:
    octets, code = OF_STREAM[name]
    server = greeted()
    events = server.receive(octets + headers_frame(3, REQUEST, end=True), 0.0)
    server.check()
    assert not server.closed
    assert server.take() == wire.reset_frame(1, code)
    assert list(server.streams) == [3]
    heard = [event.stream.id for event in only(events, HeadersReceived)]
    # The owner is told of the end of what it was told of the begin of.
    assert [event.code for event in only(events, StreamReset)] == ([code] if 1 in heard else [])
    # What was under way on that stream is let pass, and counts for the connection.
    taken = server._taken
    assert server.receive(data_frame(1, b"12345") + headers_frame(1, TRAILERS, end=True), 0.0) == []
    assert server._taken == taken + 5


OF_ANSWER: dict[str, tuple[Fields, bool, ErrorCode]] = {
    "a request": (REQUEST, False, PROTOCOL),
    "trailers only, without :status": (TRAILERS, True, PROTOCOL),
    "an informational one that ends": (((b":status", b"103"),), True, PROTOCOL),
    "content-length and no DATA": ((*RESPONSE, (b"content-length", b"1")), True, PROTOCOL),
}


@pytest.mark.parametrize("name", OF_ANSWER)
def test_a_wrong_answer_ends_the_call(name: str) -> None:
    fields, end, code = OF_ANSWER[name]
    client, key = called()
    events = client.receive(headers_frame(key, fields, end=end), 0.0)
    assert [event.code for event in only(events, StreamReset)] == [code]
    assert client.take() == wire.reset_frame(key, code)
    assert not client.streams


def test_an_answer_with_informational_headers_first() -> None:
    client, key = called()
    octets = headers_frame(key, ((b":status", b"100"),)) + headers_frame(key, ((b":status", b"103"), (b"link", b"x")))
    assert client.receive(octets, 0.0) == []
    told = client.receive(
        headers_frame(key, RESPONSE) + data_frame(key, b"x") + headers_frame(key, TRAILERS, end=True), 0.0
    )
    assert [kind for kind, _, _ in meaning(told)] == ["headers", "data", "headers", "end"]


def test_data_before_an_answers_headers() -> None:
    client, key = called()
    assert [event.code for event in only(client.receive(data_frame(key, b"x"), 0.0), StreamReset)] == [PROTOCOL]


@pytest.mark.parametrize(
    "octets",
    [
        headers_frame(3, RESPONSE),
        headers_frame(2, RESPONSE),
        data_frame(3, b"x"),
        settings(2, 1),
        wire.reset_frame(3, 0),
    ],
)
def test_what_a_server_must_not_do(octets: bytes) -> None:
    client, _ = called()
    assert ended_with(client.receive(octets, 0.0), PROTOCOL)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSMx", b"\0"])
def test_a_wrong_preface(first: bytes) -> None:
    assert ended_with(Connection(client=False).receive(first, 0.0), PROTOCOL)


@pytest.mark.parametrize("first", [frame(6, 0, 0, bytes(8)), wire.SETTINGS_ACK, headers_frame(1, REQUEST)])
def test_settings_come_first(first: bytes) -> None:
    server = Connection(client=False)
    assert ended_with(server.receive(wire.PREFACE + first, 0.0), PROTOCOL)
    assert not server.ready


def test_the_preface_may_come_in_pieces() -> None:
    server = Connection(client=False)
    for octet in HELLO:
        assert not server.ready
        assert server.receive(bytes([octet]), 0.0) == []
    assert server.ready


def test_padding_and_priorities_are_stripped() -> None:
    server = greeted()
    block = headers_frame(1, REQUEST)[9:]
    octets = frame(1, 0x2C, 1, b"\x03" + b"\0\0\0\x05\x10" + block + bytes(3)) + frame(0, 9, 1, b"\x02hi" + bytes(2))
    events = server.receive(octets, 0.0)
    assert meaning(events) == [("headers", 1, REQUEST), ("data", 1, b"hi"), ("end", 1, None)]
    data = only(events, DataReceived)[0]
    server.consumed(data.stream, 2)
    assert server._taken == 5


def test_a_block_in_continuations() -> None:
    server = greeted()
    block = headers_frame(1, REQUEST)[9:]
    octets = frame(1, 1, 1, block[:5]) + frame(9, 0, 1, block[5:9]) + frame(9, 4, 1, block[9:])
    assert meaning(server.receive(octets, 0.0)) == [("headers", 1, REQUEST), ("end", 1, None)]


def test_our_own_large_blocks_are_continued() -> None:
    ends = settled(server=Limits(header_list=1 << 17, header_block=1 << 17))
    fields = (*REQUEST, *((b"x-%d" % number, b"v" * 10_000) for number in range(6)))
    ends.client.open(fields, end=True)
    ends.settle()
    assert meaning(ends.at_server) == [("headers", 1, fields), ("end", 1, None)]


def test_unknown_frames_flags_settings_and_reserved_bits_are_ignored() -> None:
    server = greeted()
    high = 1 << 31
    octets = frame(77, 255, 5, b"anything") + settings(99, 5) + frame(6, 0xFE, high, bytes(8))
    octets += frame(1, 0xC5, high | 1, headers_frame(1, REQUEST)[9:]) + wire.window_update_frame(high, high | 5)
    assert meaning(server.receive(octets, 0.0)) == [("headers", 1, REQUEST), ("end", 1, None)]
    assert server.take() == wire.SETTINGS_ACK + frame(6, 1, 0, bytes(8))


def test_an_unknown_error_code_is_an_internal_error() -> None:
    client, key = called()
    assert [event.code for event in only(client.receive(wire.reset_frame(key, 1000), 0.0), StreamReset)] == [
        ErrorCode.INTERNAL_ERROR,
    ]


def test_a_refused_stream_is_safe_to_repeat() -> None:
    client, key = called()
    events = client.receive(wire.reset_frame(key, ErrorCode.REFUSED_STREAM), 0.0)
    assert [event.unprocessed for event in only(events, StreamReset)] == [True]


def test_ping() -> None:
    ends = settled()
    ends.client.ping(b"12345678")
    ends.settle()
    assert ends.told() == ([PingAcknowledged(b"12345678")], [])
    with pytest.raises(LocalProtocolError):
        ends.client.ping(b"1")
    # An answer to nothing is none.
    assert ends.client.receive(frame(6, 1, 0, b"12345678"), 0.0) == []


def test_going_away_gracefully() -> None:
    ends = settled()
    first = ends.client.call(REQUEST, b"x")
    ends.settle()
    ends.server.shutdown()
    # This one crossed the warning, and is served.
    second = ends.client.call(REQUEST, b"x")
    ends.settle()
    assert only(ends.at_client, GoingAway) == [GoingAway(ErrorCode.NO_ERROR, wire.MAX_STREAM_ID, b"")]
    with pytest.raises(LocalProtocolError):
        ends.client.call(REQUEST, b"x")
    ends.server.finish()
    assert ends.server.take() == wire.goaway_frame(3, ErrorCode.NO_ERROR)
    for event in only(ends.at_server, HeadersReceived):
        ends.server.respond(event.stream, RESPONSE, b"x", TRAILERS)
    ends.settle()
    assert not ends.client.streams
    assert not ends.server.streams
    assert (first.reset, second.reset) == (False, False)


def test_what_comes_after_the_last_stream_is_not_looked_at() -> None:
    ends = settled()
    ends.server.finish()
    call = ends.client.call(REQUEST, b"x")
    more = ends.client.open(REQUEST)
    ends.client.send_data(more, b"y")
    ends.client.reset(more, ErrorCode.CANCEL)
    ends.settle()
    assert ends.at_server == []
    assert not ends.server.closed
    assert only(ends.at_client, StreamReset) == [StreamReset(call, ErrorCode.REFUSED_STREAM, unprocessed=True)]
    assert not ends.client.streams


def test_closing_ends_all_at_once() -> None:
    ends = settled()
    call = ends.client.call(REQUEST, b"x")
    ends.client.close(ErrorCode.CANCEL, "enough")
    assert ends.client.closed
    ends.client.send_data(call, b"x")
    ends.client.reset(call, ErrorCode.CANCEL)
    assert ends.client.take().endswith(wire.goaway_frame(0, ErrorCode.CANCEL, b"enough"))
    with pytest.raises(LocalProtocolError):
        ends.client.open(REQUEST)


def test_the_peers_number_of_streams() -> None:
    ends = settled(server=Limits(concurrent_streams=2))
    calls = [ends.client.call(REQUEST, b"x") for _ in range(2)]
    with pytest.raises(StreamLimit):
        ends.client.call(REQUEST, b"x")
    ends.settle()
    assert not only(ends.at_client, StreamsAllowed)
    ends.server.respond(ends.server.streams[calls[0].id], RESPONSE, b"x", TRAILERS)
    ends.settle()
    assert only(ends.at_client, StreamsAllowed) == [StreamsAllowed()]
    assert ends.client.call(REQUEST, b"x").id == 5


def test_a_server_opens_nothing_and_ids_end() -> None:
    with pytest.raises(LocalProtocolError):
        Connection(client=False).open(REQUEST)
    client = Connection(client=True)
    client._next_id = wire.MAX_STREAM_ID
    assert client.open(REQUEST).id == wire.MAX_STREAM_ID
    with pytest.raises(LocalProtocolError):
        client.open(REQUEST)


def test_the_owner_learns_the_reason() -> None:
    events = greeted().receive(frame(5, 0, 1), 0.0)
    assert events == [ConnectionEnded(PROTOCOL, "PUSH_PROMISE, and pushing is off")]

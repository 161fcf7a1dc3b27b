"""The short ways for unary calls keep every rule of the long way: each condition by a case that needs it."""

from __future__ import annotations

import pytest

from nebuladb.rpc.http2 import (
    Connection,
    ErrorCode,
    HeadersReceived,
    Limits,
    LocalProtocolError,
    ResponseReceived,
    StreamLimit,
    StreamReset,
)
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.encoder import HeaderEncoder
from nebuladb.rpc.http2.frames import frame
from tests.unit.rpc.http2.ends import (
    HELLO,
    REQUEST,
    RESPONSE,
    TRAILERS,
    Told,
    data_frame,
    ended_with,
    headers_frame,
    meaning,
    only,
    settled,
)

PROTOCOL = ErrorCode.PROTOCOL_ERROR
SMALL = Limits(stream_window=20_000, connection_window=70_000, concurrent_streams=6)


def unary(
    encoder: HeaderEncoder, key: int, data: bytes = b"x", *, fields: tuple[tuple[bytes, bytes], ...] = REQUEST
) -> bytes:
    """A whole request."""
    return headers_frame(key, fields, encoder=encoder) + data_frame(key, data, end=True)


def warm() -> tuple[bytes, HeaderEncoder]:
    """(octets of a client that has called twice, so that its block is known; its encoder)."""
    encoder = HeaderEncoder()
    return HELLO + wire.SETTINGS_ACK + unary(encoder, 1) + unary(encoder, 3), encoder


def hear(octets: bytes, limits: Limits, *, cut: bool) -> tuple[list[Told], bytes]:
    """(what a server's owner is told, what the peer is)."""
    server = Connection(client=False, limits=limits)
    events = []
    for piece in [octets[at : at + 1] for at in range(len(octets))] if cut else [octets]:
        events += server.receive(piece, 0.0)
    server.check()
    return meaning(events), server.take()


def either_way(octets: bytes, limits: Limits = SMALL) -> list[Told]:
    """What is told, which is the same for the octets at once and one by one."""
    at_once, one_by_one = hear(octets, limits, cut=False), hear(octets, limits, cut=True)
    assert at_once == one_by_one
    return at_once[0]


def last_of(told: list[Told]) -> tuple[str, int, object]:
    kind, key, what = told[-1]
    return kind, key, what[0] if isinstance(what, tuple) else what


def test_it_is_taken() -> None:
    octets, encoder = warm()
    server = Connection(client=False)
    server.receive(octets, 0.0)
    events = server.receive(unary(encoder, 5) + unary(encoder, 7), 0.0)
    assert [(type(event), event.ended) for event in only(events, HeadersReceived)] == [(HeadersReceived, True)] * 2
    assert len(events) == 2


@pytest.mark.parametrize(
    ("key", "code"),
    [(6, PROTOCOL), (0, PROTOCOL), (1, ErrorCode.STREAM_CLOSED), (3, ErrorCode.STREAM_CLOSED)],
)
def test_stream_ids(key: int, code: ErrorCode) -> None:
    octets, encoder = warm()
    told = either_way(octets + unary(encoder, 5) + unary(encoder, key))
    if key == 3:
        # It is open still, half closed by the peer.
        assert last_of(told) == ("reset", 3, code)
    elif key == 1:
        assert last_of(told) == ("reset", 1, code)
    else:
        assert last_of(told) == ("ended", 0, code)


def test_a_lower_stream_that_was_never_opened() -> None:
    octets, encoder = warm()
    assert last_of(either_way(octets + unary(encoder, 9) + unary(encoder, 7))) == ("ended", 0, ErrorCode.STREAM_CLOSED)


def test_the_reserved_bit_is_ignored() -> None:
    octets, encoder = warm()
    call = bytearray(unary(encoder, 5))
    call[5] |= 0x80
    assert last_of(either_way(octets + bytes(call))) == ("end", 5, None)


def test_an_insertion_changes_what_known_octets_mean() -> None:
    octets, encoder = warm()
    known = encoder.encode(REQUEST)
    inserted = frame(wire.HEADERS, 4, 5, known + b"\x40\x01a\x01b") + data_frame(5, b"x", end=True)
    again = frame(wire.HEADERS, 4, 7, known) + data_frame(7, b"x", end=True)
    told = either_way(octets + inserted + again)
    # Under the new table the old indexes name other fields.
    assert ("headers", 7, REQUEST) not in told
    # The same after an insertion that went the long way.
    inserted = frame(wire.HEADERS, 5, 5, known + b"\x40\x01a\x01b")
    assert ("headers", 7, REQUEST) not in either_way(octets + inserted + again)


def test_a_call_within_a_header_block() -> None:
    octets, encoder = warm()
    fragment = frame(wire.HEADERS, 0, 5, b"\x82")
    assert last_of(either_way(octets + fragment + unary(encoder, 7))) == ("ended", 0, PROTOCOL)


def test_a_call_before_settings() -> None:
    assert last_of(either_way(wire.PREFACE + unary(HeaderEncoder(), 1))) == ("ended", 0, PROTOCOL)


def test_bounds_hold_on_it() -> None:
    octets, encoder = warm()
    refused = octets + b"".join(unary(encoder, key) for key in range(5, 19, 2))
    assert len([one for one in either_way(refused) if one[0] == "end"]) == SMALL.concurrent_streams
    large = octets + unary(encoder, 5, bytes(16_385))
    assert last_of(either_way(large)) == ("ended", 0, ErrorCode.FRAME_SIZE_ERROR)
    window = octets + unary(encoder, 5, bytes(16_000))
    assert last_of(either_way(window, Limits(stream_window=10_000))) == ("reset", 5, ErrorCode.FLOW_CONTROL_ERROR)


def test_content_length_is_compared() -> None:
    octets, encoder = warm()
    for said, outcome in ((b"1", "end"), (b"2", "reset")):
        fields = (*REQUEST, (b"content-length", said))
        assert last_of(either_way(octets + unary(encoder, 5, fields=fields)))[0] == outcome


def test_a_malformed_request_is_decoded_once() -> None:
    """Decoding it again on the long way would insert its field twice."""
    octets, encoder = warm()
    known = encoder.encode(REQUEST)
    bad = frame(wire.HEADERS, 4, 5, known + b"\x40\x01A\x01b") + data_frame(5, b"x", end=True)
    good = frame(wire.HEADERS, 4, 7, known[:2] + bytes(octet + (octet > 0xBD) for octet in known[2:]))
    told = either_way(octets + bad + good + data_frame(7, b"y", end=True))
    assert ("headers", 7, REQUEST) in told


def test_the_table_must_shrink_after_the_acknowledgement() -> None:
    octets, encoder = warm()
    told = either_way(
        octets.replace(wire.SETTINGS_ACK, b"") + wire.SETTINGS_ACK + unary(encoder, 5), Limits(header_table=100)
    )
    assert last_of(told) == ("ended", 0, ErrorCode.COMPRESSION_ERROR)


# A client's


def answers(
    encoder: HeaderEncoder, key: int, data: bytes = b"y", *, last: tuple[tuple[bytes, bytes], ...] = TRAILERS
) -> bytes:
    """A whole answer."""
    first = headers_frame(key, RESPONSE, encoder=encoder) + data_frame(key, data)
    return first + headers_frame(key, last, end=True, encoder=encoder)


def calling(limits: Limits, calls: int) -> tuple[Connection, HeaderEncoder]:
    """A client with calls under way, two of them answered, and the server's encoder."""
    client, encoder = Connection(client=True, limits=limits), HeaderEncoder()
    client.whole_responses = True
    for _ in range(calls + 2):
        client.call(REQUEST, b"x")
    client.receive(wire.settings_frame({}) + wire.SETTINGS_ACK, 0.0)
    client.receive(answers(encoder, 1) + answers(encoder, 3), 0.0)
    client.take()
    return client, encoder


def test_an_answer_is_one_event() -> None:
    client, encoder = calling(SMALL, 1)
    events = client.receive(answers(encoder, 5), 0.0)
    assert [type(event) for event in events] == [ResponseReceived]
    client.check()
    assert not client.streams


def test_answers_over_the_connections_window() -> None:
    client, encoder = calling(SMALL, 5)
    octets = b"".join(answers(encoder, key, bytes(15_000)) for key in range(5, 15, 2))
    assert ended_with(client.receive(octets, 0.0), ErrorCode.FLOW_CONTROL_ERROR)


def test_answers_give_the_connections_window_back() -> None:
    client, encoder = calling(SMALL, 3)
    for key in (5, 7, 9):
        client.receive(answers(encoder, key, bytes(15_000)), 0.0)
    # The first answers came in three events each, whose data nobody has consumed.
    assert client.take() == wire.window_update_frame(0, 45_000)


def test_an_answer_over_the_streams_window() -> None:
    client, encoder = calling(Limits(stream_window=1_000), 1)
    events = client.receive(answers(encoder, 5, bytes(1_001)), 0.0)
    assert [event.code for event in only(events, StreamReset)] == [ErrorCode.FLOW_CONTROL_ERROR]


def test_known_headers_in_the_place_of_trailers() -> None:
    client, encoder = calling(SMALL, 1)
    events = client.receive(answers(encoder, 5, last=RESPONSE), 0.0)
    assert [event.code for event in only(events, StreamReset)] == [PROTOCOL]
    assert not only(events, ResponseReceived)


def test_interleaved_answers_are_told_in_pieces() -> None:
    client, encoder = calling(SMALL, 2)
    first, second = answers(encoder, 5), answers(encoder, 7)
    cut = len(headers_frame(5, RESPONSE, encoder=encoder))
    events = client.receive(first[:cut] + second + first[cut:], 0.0)
    assert {one[1] for one in meaning(events) if one[0] == "end"} == {5, 7}
    assert [event.stream.id for event in only(events, ResponseReceived)] == [7]


# A server's answers


def test_the_remembered_frames_follow_the_table() -> None:
    ends = settled()
    other = ((b":status", b"200"), (b"content-type", b"application/grpc+proto"))
    for headers in (RESPONSE, RESPONSE, RESPONSE, other, RESPONSE, other, RESPONSE):
        ends.client.call(REQUEST, b"x")
        ends.settle()
        request = only(ends.told()[1], HeadersReceived)[0]
        ends.server.respond(request.stream, headers, b"y", TRAILERS)
        ends.settle()
        told = meaning(ends.told()[0])
        assert [what for kind, _, what in told if kind == "headers"] == [headers, TRAILERS]


def test_an_answer_waits_for_the_connections_window() -> None:
    octets, encoder = warm()
    server = Connection(client=False)
    for event in server.receive(octets + unary(encoder, 5), 0.0):
        assert isinstance(event, HeadersReceived)
        server.respond(event.stream, RESPONSE, bytes(15_000), TRAILERS)
    server.receive(unary(encoder, 7) + unary(encoder, 9), 0.0)
    server.respond(server.streams[7], RESPONSE, bytes(15_000), TRAILERS)
    last = server.streams[9]
    server.respond(last, RESPONSE, bytes(15_000), TRAILERS)
    assert last.waiting == 5 * 15_000 - 65_535
    server.check()


def test_an_answer_waits_for_the_streams_window() -> None:
    octets, encoder = warm()
    server = Connection(client=False)
    for event in server.receive(octets.replace(HELLO, wire.PREFACE + wire.settings_frame({4: 10})), 0.0):
        assert isinstance(event, HeadersReceived)
        server.respond(event.stream, RESPONSE, bytes(10), TRAILERS)
    server.receive(unary(encoder, 5), 0.0)
    stream = server.streams[5]
    server.respond(stream, RESPONSE, bytes(11), TRAILERS)
    assert stream.waiting == 1
    server.receive(wire.window_update_frame(5, 1), 0.0)
    assert not server.streams


def test_a_call_waits_for_both_windows() -> None:
    client = Connection(client=True)
    client.receive(wire.settings_frame({4: 16_000}) + wire.SETTINGS_ACK, 0.0)
    assert client.call(REQUEST, bytes(16_001)).waiting == 1
    for _ in range(3):
        assert client.call(REQUEST, bytes(16_000)).waiting == 0
    # 16,000 went four times; the connection has 65,535.
    last = client.call(REQUEST, bytes(16_000))
    assert last.waiting == 5 * 16_000 - 65_535
    client.check()


def test_a_call_is_opened_only_where_streams_are() -> None:
    client = Connection(client=True)
    client.receive(wire.settings_frame({3: 1}) + wire.SETTINGS_ACK, 0.0)
    call = client.call(REQUEST, b"x")
    with pytest.raises(StreamLimit):
        client.call(REQUEST, b"x")
    client.reset(call, ErrorCode.CANCEL)
    client.shutdown()
    with pytest.raises(LocalProtocolError):
        client.call(REQUEST, b"x")
    with pytest.raises(LocalProtocolError):
        Connection(client=False).call(REQUEST, b"x")

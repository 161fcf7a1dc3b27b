"""Every bound of `Limits`: a peer that grows something meets it, and one that behaves doesn't."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Final

import pytest

from nebuladb.errors import ConfigurationError
from nebuladb.rpc.http2 import (
    Connection,
    ErrorCode,
    Event,
    GoingAway,
    HeadersReceived,
    Limits,
    Rate,
    StreamReset,
    core,
)
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.frames import frame
from nebuladb.rpc.http2.sending import PIECE, UPDATES_A_FRAME
from tests.unit.rpc.http2.ends import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    called,
    data_frame,
    ended_with,
    greeted,
    headers_frame,
    only,
    settled,
)

CALM: Final = ErrorCode.ENHANCE_YOUR_CALM
LIMITS: Final = Limits()


def until_the_end(connection: Connection, octets: Callable[[int], bytes], *, at_most: int) -> tuple[int, list[Event]]:
    """Feed `octets(0)`, `octets(1)`, … at one instant until the connection ends: how many, and the last events."""
    for number in range(at_most):
        events = connection.receive(octets(number), 0.0)
        connection.take()
        if connection.closed:
            return number, events
    return at_most, []


def reset_storm(number: int) -> bytes:
    key = 2 * number + 1
    return headers_frame(key, REQUEST) + wire.reset_frame(key, ErrorCode.CANCEL)


def provoked_resets(number: int) -> bytes:
    """MadeYouReset: the server is made to reset streams itself, whose handlers go on."""
    key = 2 * number + 1
    return headers_frame(key, REQUEST, end=True) + wire.window_update_frame(key, 0)


def refused_streams(number: int) -> bytes:
    return headers_frame(2 * number + 1, REQUEST)


FLOODS: Final[dict[str, tuple[Callable[[int], bytes], int]]] = {
    "resets (rapid reset)": (reset_storm, LIMITS.resets.burst),
    "resets (made by the server)": (provoked_resets, LIMITS.resets.burst),
    "resets (refused streams)": (refused_streams, LIMITS.resets.burst + LIMITS.concurrent_streams),
    "settings": (lambda number: wire.settings_frame({1: number}), LIMITS.settings.burst - 1),
    "settings (goaways)": (lambda number: wire.goaway_frame(0, 0), LIMITS.settings.burst - 1),
    # The first is free, as if it answered data.
    "pings": (lambda number: frame(wire.PING, 0, 0, bytes(8)), LIMITS.pings.burst + 1),
    "ignored (late resets)": (
        lambda number: (b"" if number else headers_frame(1, TRAILERS)) + wire.reset_frame(1, 8),
        LIMITS.ignored.burst + 1,
    ),
    "ignored (priority)": (lambda number: frame(wire.PRIORITY, 0, 1, bytes(5)), LIMITS.ignored.burst),
    "ignored (unknown)": (lambda number: frame(200, 0, 1, b""), LIMITS.ignored.burst),
    "ignored (pongs)": (lambda number: frame(wire.PING, 1, 0, bytes(8)), LIMITS.ignored.burst),
    "empty": (
        lambda number: (b"" if number else headers_frame(1, REQUEST)) + data_frame(1, b""),
        LIMITS.empty.burst,
    ),
    "empty (padding)": (
        lambda number: (b"" if number else headers_frame(1, REQUEST)) + frame(0, 8, 1, b"\x01\0"),
        LIMITS.empty.burst,
    ),
    "window_updates": (lambda number: wire.window_update_frame(0, 1), LIMITS.window_updates.burst + 1),
    "window_updates (of a stream)": (
        lambda number: (b"" if number else headers_frame(1, REQUEST)) + wire.window_update_frame(1, 1),
        LIMITS.window_updates.burst + 1,
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_connection_at_its_burst(name: str) -> None:
    octets, burst = FLOODS[name]
    number, events = until_the_end(greeted(), octets, at_most=burst + 10)
    assert number == burst
    assert ended_with(events, CALM)


@pytest.mark.parametrize("name", FLOODS)
def test_the_same_at_the_rate_goes_on(name: str) -> None:
    octets, burst = FLOODS[name]
    rate: Rate = getattr(LIMITS, name.partition(" ")[0])
    server = greeted()
    for number in range(burst + 100):
        server.receive(octets(number), number / rate.per_second)
        server.take()
    assert not server.closed


def test_informational_answers_without_end() -> None:
    client, key = called()
    octets = headers_frame(key, ((b":status", b"100"),))
    number, events = until_the_end(client, lambda number: octets, at_most=2_000)
    assert number == LIMITS.ignored.burst
    assert ended_with(events, CALM)


def test_window_updates_that_data_earned_are_free() -> None:
    server = greeted()
    server.receive(wire.settings_frame({4: 1 << 20}) + wire.window_update_frame(0, 1 << 20), 0.0)
    for number in range(3 * LIMITS.window_updates.burst):
        if number % 500 == 0:
            server.receive(headers_frame(number + 1, REQUEST, end=True), 0.0)
            stream = server.streams[number + 1]
            server.send_headers(stream, RESPONSE)
        server.send_data(stream, b"x")
        server.receive(wire.window_update_frame(0, 1) + wire.window_update_frame(stream.id, 1), 0.0)
        server.take()
    assert not server.closed


def test_two_window_updates_for_each_answer_are_free() -> None:
    """grpcio's client gives back both windows at each unary call, one before and one after the answer."""
    server = greeted()
    server.receive(wire.window_update_frame(0, 1 << 20), 0.0)
    for number in range(3 * LIMITS.window_updates.burst):
        key = 2 * number + 1
        server.receive(headers_frame(key, REQUEST, end=True), 0.0)
        server.receive(wire.window_update_frame(key, 5), 0.0)
        server.respond(server.streams[key], RESPONSE, b"x", TRAILERS)
        server.receive(wire.window_update_frame(0, 1), 0.0)
        server.take()
    assert not server.closed


def test_window_updates_are_earned_once() -> None:
    server = greeted(Limits(window_updates=Rate(10, 1)))
    server.receive(headers_frame(1, REQUEST, end=True), 0.0)
    server.send_headers(server.streams[1], RESPONSE)
    server.send_data(server.streams[1], b"x")
    # Two that the octet's frame earned, one that comes after it, and the burst.
    number, events = until_the_end(server, lambda number: wire.window_update_frame(0, 1), at_most=100)
    assert number == 1 + UPDATES_A_FRAME + 10
    assert ended_with(events, CALM)


def test_a_ping_for_each_answer_is_free() -> None:
    """gRPC for Go measures so; a rate would end its connection within the first second."""
    server = greeted()
    server.receive(wire.window_update_frame(0, 1 << 20), 0.0)
    for number in range(3 * LIMITS.pings.burst):
        key = 2 * number + 1
        server.receive(headers_frame(key, REQUEST, end=True), 0.0)
        server.respond(server.streams[key], RESPONSE, b"x", TRAILERS)
        server.receive(frame(wire.PING, 0, 0, bytes(8)), 0.0)
        server.take()
    assert not server.closed


def test_resets_of_what_was_answered_are_free() -> None:
    """Clients of streams send one when the answer came before they had ended."""
    server = greeted()
    server.receive(wire.window_update_frame(0, 1 << 20), 0.0)
    for number in range(2 * LIMITS.resets.burst):
        key = 2 * number + 1
        server.receive(headers_frame(key, REQUEST), 0.0)
        server.respond(server.streams[key], RESPONSE, b"x", TRAILERS)
        server.receive(wire.reset_frame(key, ErrorCode.CANCEL), 0.0)
        server.take()
    assert not server.closed
    assert not server.streams


def test_limits_that_http2_has_no_place_for() -> None:
    for size in (16_383, 1 << 24):
        with pytest.raises(ConfigurationError):
            Limits(frame_size=size)
    with pytest.raises(ConfigurationError):
        Limits(stream_window=1 << 31)


def test_streams_over_the_number_are_refused() -> None:
    server = greeted(Limits(concurrent_streams=2))
    octets = b"".join(headers_frame(key, REQUEST) + data_frame(key, b"x", end=True) for key in (1, 3, 5))
    events = server.receive(octets, 0.0)
    assert [event.stream.id for event in only(events, HeadersReceived)] == [1, 3]
    assert server.take() == wire.reset_frame(5, ErrorCode.REFUSED_STREAM)
    assert not server.closed


@pytest.mark.parametrize("large", [(b"x", b"v" * (LIMITS.header_list - 300)), "fields"], ids=["octets", "fields"])
def test_a_header_list_over_the_bound_loses_its_stream(large: object) -> None:
    more = (large,) if isinstance(large, tuple) else ((b"x", b""),) * LIMITS.header_fields
    server = greeted()
    events = server.receive(headers_frame(1, (*REQUEST, *more)) + headers_frame(3, REQUEST, end=True), 0.0)
    assert server.take() == wire.reset_frame(1, CALM)
    assert [event.stream.id for event in only(events, HeadersReceived)] == [3]


def test_a_header_list_far_over_it_loses_the_connection() -> None:
    server = greeted()
    entry = frame(wire.HEADERS, 5, 1, b"\x40\x01x\x7f\x81\x1e" + b"v" * 3968)
    bomb = frame(wire.HEADERS, 5, 3, b"\xbe" * 100)
    assert ended_with(server.receive(entry + bomb, 0.0), CALM)


def test_continuations_are_counted_and_measured() -> None:
    server = greeted()
    octets = frame(wire.HEADERS, 0, 1, b"") + frame(wire.CONTINUATION, 0, 1, b"") * LIMITS.continuations
    assert server.receive(octets, 0.0) == []
    assert ended_with(server.receive(frame(wire.CONTINUATION, 0, 1, b""), 0.0), CALM)
    server = greeted()
    octets = frame(wire.HEADERS, 0, 1, bytes(16_000)) + frame(wire.CONTINUATION, 0, 1, bytes(16_000))
    assert server.receive(octets, 0.0) == []
    assert server._fragment is not None
    assert len(server._fragment.block) <= LIMITS.header_block
    assert ended_with(server.receive(frame(wire.CONTINUATION, 4, 1, bytes(1_000)), 0.0), CALM)


def test_a_frame_that_never_comes_whole_is_held_up_to_its_size() -> None:
    server = greeted()
    server.receive(headers_frame(1, REQUEST) + data_frame(1, bytes(LIMITS.frame_size))[:-1], 0.0)
    assert len(server._rest) == wire.HEAD_SIZE + LIMITS.frame_size - 1
    assert ended_with(greeted().receive(frame(wire.DATA, 0, 1, bytes(LIMITS.frame_size + 1))[:9], 0.0), ErrorCode(6))


def test_answers_that_nobody_takes_are_bounded() -> None:
    server = greeted(Limits(answers=50, pings=Rate(10**6, 1)))
    server.receive(frame(wire.PING, 0, 0, bytes(8)) * 50, 0.0)
    assert not server.closed
    server.take()
    events = server.receive(frame(wire.PING, 0, 0, bytes(8)) * 1_000, 0.0)
    assert ended_with(events, CALM)
    assert len(server.take()) <= 50 * 17 + 300


def test_what_waits_behind_tiny_windows_is_bounded() -> None:
    server = Connection(client=False, limits=Limits(waiting_bytes=1_000))
    server.receive(wire.PREFACE + wire.settings_frame({4: 0}), 0.0)
    server.receive(headers_frame(1, REQUEST, end=True) + headers_frame(3, REQUEST, end=True), 0.0)
    first, second = server.streams[1], server.streams[3]
    server.take()
    server.respond(first, RESPONSE, b"x" * 600, TRAILERS)
    server.respond(second, RESPONSE, b"x" * 600, TRAILERS)
    server.check()
    assert (first.waiting, second.waiting, server.waiting) == (600, 0, 600)
    assert second.reset
    assert server.take().endswith(wire.reset_frame(3, ErrorCode.INTERNAL_ERROR))
    assert server.receive(b"", 0.0) == [StreamReset(second, ErrorCode.INTERNAL_ERROR)]
    assert not server.closed


def test_what_waits_is_held_in_pieces_not_whole() -> None:
    server = Connection(client=False)
    server.receive(wire.PREFACE + wire.settings_frame({4: 0}), 0.0)
    server.receive(headers_frame(1, REQUEST, end=True), 0.0)
    server.respond(server.streams[1], RESPONSE, bytes(1 << 20), TRAILERS)
    server.receive(wire.window_update_frame(1, (1 << 20) - 1) + wire.window_update_frame(0, 1 << 20), 0.0)
    queue = server.streams[1].queue
    assert queue is not None
    # One octet waits; what it keeps alive is a piece, not the mebibyte.
    assert [len(bytes(piece.obj)) for piece in queue] == [PIECE]


def test_remembered_resets_are_bounded() -> None:
    server = greeted()
    for number in range(2 * LIMITS.remembered_resets):
        server.receive(headers_frame(2 * number + 1, REQUEST), 0.0)
        server.reset(server.streams[2 * number + 1], ErrorCode.CANCEL)
        server.take()
    assert len(server._resets) == LIMITS.remembered_resets
    # The newest are let pass; the oldest are forgotten, and a frame on one is an error.
    newest = 4 * LIMITS.remembered_resets - 1
    assert server.receive(data_frame(newest, b"x"), 0.0) == []
    assert ended_with(server.receive(data_frame(1, b"x"), 0.0), ErrorCode.STREAM_CLOSED)


def test_a_client_may_cancel_all_its_calls_while_their_answers_are_on_the_way() -> None:
    many = 3 * LIMITS.remembered_resets
    ends = settled(server=LIMITS.with_streams(many))
    calls = [ends.client.call(REQUEST, b"x") for _ in range(many)]
    ends.settle()
    for event in only(ends.told()[1], HeadersReceived):
        ends.server.respond(event.stream, RESPONSE, b"y", TRAILERS)
    for call in calls:
        ends.client.reset(call, ErrorCode.CANCEL)
    ends.settle()
    assert not ends.client.closed
    assert not ends.server.closed


def test_what_a_client_remembers_is_bounded_whatever_its_server_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_REMEMBERED", 2_000)
    client, _ = called()
    assert client.peer.concurrent_streams > 1 << 30, "it said nothing of it"
    for _ in range(3_000):
        client.reset(client.call(REQUEST, b"x"), ErrorCode.CANCEL)
    assert len(client._resets) == 2_000


@pytest.mark.parametrize(
    ("end", "code", "free"),
    [(True, ErrorCode.NO_ERROR, True), (True, ErrorCode.CANCEL, False), (False, ErrorCode.NO_ERROR, False)],
)
def test_a_server_that_wants_no_more_of_what_it_answered_is_no_flood(end: bool, code: ErrorCode, free: bool) -> None:
    """RFC 9113, 8.1: a whole answer, and then RST_STREAM (NO_ERROR) for the rest of the request."""
    client, _ = called()
    refusal = headers_frame(0, RESPONSE + TRAILERS, end=end)[9:]
    flags = wire.END_HEADERS | (wire.END_STREAM if end else 0)
    ended: list[Event] = []
    number = 0
    while not client.closed and number < 2 * LIMITS.resets.burst:
        stream = client.open(REQUEST)
        answer = frame(wire.HEADERS, flags, stream.id, refusal)
        ended = client.receive(answer + wire.reset_frame(stream.id, code), 0.0)
        client.take()
        number += 1
    assert client.closed is not free
    if not free:
        assert number == LIMITS.resets.burst + 1
        assert ended_with(ended, CALM)


def test_debug_data_is_bounded_both_ways() -> None:
    client, _ = called()
    events = client.receive(wire.goaway_frame(0, 11, b"d" * 10_000), 0.0)
    assert [len(event.debug) for event in only(events, GoingAway)] == [LIMITS.debug_bytes]
    server = greeted()
    server.close(ErrorCode.INTERNAL_ERROR, "m" * 10_000)
    assert len(server.take()) == wire.HEAD_SIZE + 8 + LIMITS.debug_bytes


def test_every_bound_has_a_test() -> None:
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in ("test_bounds.py", "test_flow.py", "test_decoder.py"))
    untested = {field.name for field in fields_of(Limits) if not re.search(rf"\b{field.name}\b", text)}
    # These are for the owner, who has the clock.
    assert untested == {"preface" + "_seconds", "idle" + "_seconds"}


def test_what_grows_with_the_streams_keeps_its_proportion_to_them() -> None:
    """Who may have 20,000 streams may cancel them, and wait for their windows."""
    more = LIMITS.with_streams(20 * LIMITS.concurrent_streams)
    assert more.concurrent_streams == 20_000
    assert more.resets == Rate(40_000, 10_000.0)
    assert more.ignored == Rate(20_000, 2_000.0)
    assert more.window_updates == Rate(40_000, 20_000.0)
    assert more.remembered_resets == 20 * LIMITS.remembered_resets
    assert more.with_streams(LIMITS.concurrent_streams) == LIMITS, "and nothing else has changed"


def test_a_burst_of_cancels_of_all_streams_ends_no_connection() -> None:
    server = greeted(LIMITS.with_streams(5_000))
    for number in range(5_000):
        server.receive(headers_frame(2 * number + 1, REQUEST), 0.0)
    for number in range(5_000):
        server.receive(wire.reset_frame(2 * number + 1, ErrorCode.CANCEL), 0.0)
    assert not server.closed
    number, events = until_the_end(
        server, lambda number: reset_storm(5_000 + number), at_most=server.limits.resets.burst
    )
    assert number == server.limits.resets.burst - 5_000, "the flood is one all the same"
    assert ended_with(events, CALM)

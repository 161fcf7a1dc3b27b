"""The table of stream states, and that a connection keeps to it on both ways through the code."""

from __future__ import annotations

import pytest

from nebuladb.rpc.http2 import Connection, ErrorCode, LocalProtocolError, State, Stream, StreamReset
from nebuladb.rpc.http2 import frames as wire
from nebuladb.rpc.http2.stream import TRANSITIONS, Act
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS, data_frame, greeted, headers_frame, only


def test_the_table_is_figure_2() -> None:
    ended = {Act.RECEIVE_END: 2, Act.SEND_END: 1, Act.RECEIVE: 0, Act.SEND: 0}
    sends = {Act.SEND: 1, Act.SEND_END: 1, Act.RECEIVE: 2, Act.RECEIVE_END: 2}
    for state in State:
        assert TRANSITIONS[state][Act.RESET] is State.CLOSED
        for act, side in sends.items():
            expected = ErrorCode.STREAM_CLOSED if state & side else State(state | ended[act])
            assert TRANSITIONS[state][act] is expected


def in_state(state: State) -> tuple[Connection, Stream]:
    """A server's stream 1 in a state; its headers were sent."""
    server = greeted()
    server.receive(headers_frame(1, REQUEST, end=bool(state & State.HALF_CLOSED_REMOTE)), 0.0)
    stream = server.streams[1]
    server.send_headers(stream, RESPONSE, end=bool(state & State.HALF_CLOSED_LOCAL))
    assert stream.state is state
    server.take()
    return server, stream


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("state", State)
def test_sending_follows_the_table(state: State, *, end: bool) -> None:
    server, stream = in_state(state)
    after = TRANSITIONS[state][Act.SEND_END if end else Act.SEND]
    if isinstance(after, ErrorCode):
        with pytest.raises(LocalProtocolError) as caught:
            server.send_data(stream, b"x", end=end)
        assert caught.value.code is after
        with pytest.raises(LocalProtocolError):
            server.send_headers(stream, TRAILERS, end=True)
        assert server.take() == b""
        return
    server.send_data(stream, b"x", end=end)
    assert server.take() == data_frame(1, b"x", end=end)
    assert stream.state is after
    assert (1 in server.streams) == (after is not State.CLOSED)


@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("state", [State.OPEN, State.HALF_CLOSED_LOCAL, State.HALF_CLOSED_REMOTE])
def test_receiving_follows_the_table(state: State, *, end: bool, trailers: bool) -> None:
    server, stream = in_state(state)
    frame = headers_frame(1, TRAILERS, end=end) if trailers else data_frame(1, b"x", end=end)
    events = server.receive(frame, 0.0)
    after = TRANSITIONS[state][Act.RECEIVE_END if end else Act.RECEIVE]
    if isinstance(after, ErrorCode):
        assert [(event.stream, event.code) for event in only(events, StreamReset)] == [(stream, after)]
        assert server.take() == wire.reset_frame(1, after)
        assert stream.state is State.CLOSED
    elif trailers and not end:
        assert [event.code for event in only(events, StreamReset)] == [ErrorCode.PROTOCOL_ERROR]
    else:
        assert len(events) == 1
        assert stream.state is after
        assert (1 in server.streams) == (after is not State.CLOSED)
    assert not server.closed


@pytest.mark.parametrize("state", [State.OPEN, State.HALF_CLOSED_LOCAL, State.HALF_CLOSED_REMOTE])
@pytest.mark.parametrize("ours", [False, True])
def test_a_reset_closes_in_every_state(state: State, *, ours: bool) -> None:
    server, stream = in_state(state)
    if ours:
        server.reset(stream, ErrorCode.CANCEL)
        assert server.take() == wire.reset_frame(1, ErrorCode.CANCEL)
        server.reset(stream, ErrorCode.CANCEL)
    else:
        events = server.receive(wire.reset_frame(1, ErrorCode.CANCEL), 0.0)
        assert events == [StreamReset(stream, ErrorCode.CANCEL)]
    assert (stream.state, stream.reset, server.streams) == (State.CLOSED, True, {})
    # The owner may not have heard of it: what it still sends goes nowhere.
    server.send_data(stream, b"x")
    server.send_headers(stream, TRAILERS, end=True)
    server.respond(stream, RESPONSE, b"x", TRAILERS)
    server.consumed(stream, 5)
    assert server.take() == b""


def test_data_before_headers_is_our_own_mistake() -> None:
    server = greeted()
    server.receive(headers_frame(1, REQUEST, end=True), 0.0)
    with pytest.raises(LocalProtocolError):
        server.send_data(server.streams[1], b"x")
    server.send_headers(server.streams[1], RESPONSE)
    with pytest.raises(LocalProtocolError):
        server.send_headers(server.streams[1], RESPONSE)


def test_a_response_whose_trailers_can_not_be_sent_is_not_begun() -> None:
    server = greeted()
    server.receive(headers_frame(1, REQUEST, end=True), 0.0)
    with pytest.raises(LocalProtocolError):
        server.respond(server.streams[1], RESPONSE, b"x", ((b"Bad", b""),))
    assert server.take() == b""
    server.respond(server.streams[1], RESPONSE, b"x", TRAILERS)
    assert not server.streams

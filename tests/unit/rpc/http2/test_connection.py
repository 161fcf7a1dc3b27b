"""Calls between two ends in memory."""

from __future__ import annotations

from nebuladb.rpc.http2 import DataReceived, HeadersReceived
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS, only, settled


def test_a_unary_call() -> None:
    ends = settled()
    for number in range(4):
        ends.at_server.clear()
        ends.at_client.clear()
        body = b"request %d" % number
        call = ends.client.call(REQUEST, body)
        ends.settle()
        headers = only(ends.at_server, HeadersReceived)[0]
        assert headers.headers.fields == REQUEST
        assert headers.data == body
        assert len(ends.at_server) == 1
        ends.server.respond(headers.stream, RESPONSE, b"answer", TRAILERS)
        ends.settle()
        first, data, last = ends.at_client
        assert isinstance(first, HeadersReceived)
        assert (first.stream, first.headers.fields, first.ended) == (call, RESPONSE, False)
        assert isinstance(data, DataReceived)
        assert (data.data, data.ended) == (b"answer", False)
        assert isinstance(last, HeadersReceived)
        assert (last.headers.fields, last.ended) == (TRAILERS, True)
        ends.client.consumed(call, len(data.data))
        assert not ends.client.streams
        assert not ends.server.streams

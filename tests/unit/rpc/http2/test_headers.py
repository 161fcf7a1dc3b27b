"""What a header list is (RFC 9113, section 8)."""

from __future__ import annotations

import pytest

from nebuladb.rpc.http2 import Fields, HeaderBlock
from nebuladb.rpc.http2.headers import KNOWN_FIELDS, Judge, Kind
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS


def judged(fields: Fields) -> HeaderBlock:
    return Judge().classify(fields, 0)


def test_kinds() -> None:
    assert judged(REQUEST).kind is Kind.REQUEST
    assert judged(RESPONSE).kind is Kind.RESPONSE
    assert judged(TRAILERS).kind is Kind.TRAILERS
    assert judged(((b":status", b"100"),)).kind is Kind.INFORMATIONAL
    assert judged((*REQUEST, (b"content-length", b"12"), (b"content-length", b"12"))).length == 12


@pytest.mark.parametrize(
    "fields",
    [
        (*REQUEST, (b"Upper", b"x")),
        (*REQUEST, (b"", b"x")),
        (*REQUEST, (b"a b", b"x")),
        (*REQUEST, (b"a\x00", b"x")),
        (*REQUEST, (b"a:b", b"x")),
        (*REQUEST, (b"\xff", b"x")),
        (*REQUEST, (b"x", b"a\nb")),
        (*REQUEST, (b"x", b"a\rb")),
        (*REQUEST, (b"x", b"a\0b")),
        (*REQUEST, (b"x", b" a")),
        (*REQUEST, (b"x", b"a\t")),
        (*REQUEST, (b":path", b"/")),
        (*REQUEST, (b":status", b"200")),
        (*REQUEST, (b"connection", b"close")),
        (*REQUEST, (b"keep-alive", b"1")),
        (*REQUEST, (b"proxy-connection", b"close")),
        (*REQUEST, (b"transfer-encoding", b"chunked")),
        (*REQUEST, (b"upgrade", b"h2c")),
        (*REQUEST, (b"te", b"gzip")),
        (*REQUEST, (b"host", b"elsewhere")),
        (*REQUEST, (b"content-length", b"-1")),
        (*REQUEST, (b"content-length", b"1"), (b"content-length", b"2")),
        (*REQUEST, (b"content-length", b"9" * 30)),
        ((b":method", b"POST"), *REQUEST),
        ((b":protocol", b"websocket"), *REQUEST),
        ((b"x", b"y"), *REQUEST),
        REQUEST[1:],
        (REQUEST[0], *REQUEST[2:]),
        (*REQUEST[:2], *REQUEST[3:]),
        (*REQUEST[:2], (b":path", b""), *REQUEST[3:]),
        ((b":method", b"CONNECT"), (b":authority", b"a:1")),
        ((b":status", b"20"),),
        ((b":status", b"abc"),),
        ((b":status", b"099"),),
        ((b":status", b"101"),),
        ((b":status", b"200"), (b":path", b"/")),
        ((b":status", b"200"), (b":status", b"200")),
        ((b"grpc-status", b"0"), (b":status", b"200")),
    ],
    ids=repr,
)
def test_malformed(fields: Fields) -> None:
    block = judged(fields)
    assert block.kind is Kind.MALFORMED
    assert block.fault


def test_host_that_agrees_is_fine() -> None:
    assert judged((*REQUEST, (b"host", b"127.0.0.1:7379"))).kind is Kind.REQUEST


def test_a_known_field_in_a_wrong_place_is_wrong_still() -> None:
    judge = Judge()
    assert judge.classify(REQUEST, 0).kind is Kind.REQUEST
    assert judge.classify((*REQUEST, REQUEST[0]), 0).fault
    assert judge.classify(REQUEST[::-1], 0).fault
    lengths = (*REQUEST, (b"content-length", b"1"))
    assert [judge.classify(lengths, 0).length for _ in range(2)] == [1, 1]


def test_remembered_fields_are_bounded() -> None:
    judge = Judge()
    for number in range(3 * KNOWN_FIELDS):
        judge.classify(((b"x", b"%d" % number), (b"y", b"z" * 1000)), 0)
    assert len(judge._good) <= KNOWN_FIELDS

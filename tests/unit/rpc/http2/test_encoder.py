"""What is indexed, what never is, and that any decoder understands it."""

from __future__ import annotations

import pytest
from hpack import Decoder, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.rpc.http2 import Fields, LocalProtocolError
from nebuladb.rpc.http2.encoder import MAX_TABLE, MEMO, HeaderEncoder, integer
from tests.unit.rpc.http2.ends import REQUEST, RESPONSE, TRAILERS

NAMES = st.sampled_from(
    (b":path", b"content-type", b"grpc-status", b"authorization", b"x-id", b"cookie", b"user-agent")
)
VALUES = st.one_of(
    st.sampled_from((b"0", b"200", b"/", b"application/grpc")), st.text("ab", max_size=400).map(str.encode)
)
STEPS = st.lists(
    st.one_of(st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple), st.integers(0, 5000)), max_size=20
)


@given(steps=STEPS)
@settings(deadline=None, max_examples=200)
def test_any_decoder_understands_it(steps: list[Fields | int]) -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    for step in steps:
        if isinstance(step, int):
            decoder.max_allowed_table_size = step
            encoder.resize(step)
            continue
        for _ in range(2):
            decoded = decoder.decode(encoder.encode(step), raw=True)
            assert tuple((name, value) for name, value in decoded) == step


def test_constant_fields_become_an_octet_each() -> None:
    encoder = HeaderEncoder()
    first, second = encoder.encode(RESPONSE), encoder.encode(RESPONSE)
    assert (len(first), len(second)) == (1 + 2 + len(b"application/grpc"), 2)
    third = encoder.encode(RESPONSE)
    assert third == second
    assert encoder.encode(RESPONSE) is third
    encoder.encode(TRAILERS)
    assert len(encoder.encode(TRAILERS)) == 1
    # What was inserted since has moved the others.
    moved = encoder.encode(RESPONSE)
    assert moved != second
    assert len(moved) == 2


def test_secrets_are_never_indexed() -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    fields = ((b"authorization", b"Bearer secret"), (b"cookie", b"secret"), (b"x-other", b"v"))
    for _ in range(2):
        decoded = list(decoder.decode(encoder.encode(fields), raw=True))
        assert [isinstance(field, NeverIndexedHeaderTuple) for field in decoded] == [True, True, False]
    assert not decoder.header_table.dynamic_entries
    assert not encoder._inserted


def test_the_table_is_filled_and_never_evicts() -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    for number in range(300):
        fields = ((b":path", b"/service/method%d" % number),)
        for _ in range(2):
            assert [tuple(field) for field in decoder.decode(encoder.encode(fields), raw=True)] == [*fields]
    assert decoder.header_table._current_size <= MAX_TABLE
    assert (b":path", b"/service/method0") in decoder.header_table.dynamic_entries
    assert len(encoder.encode(((b":path", b"/service/method0"),))) == 2


def test_a_peer_without_a_table() -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    encoder.encode(REQUEST)
    encoder = HeaderEncoder()
    encoder.resize(0)
    decoder.max_allowed_table_size = 0
    for _ in range(3):
        assert tuple(tuple(field) for field in decoder.decode(encoder.encode(REQUEST), raw=True)) == REQUEST
    assert not encoder._inserted


def test_memos_are_bounded() -> None:
    encoder = HeaderEncoder()
    for number in range(3 * MEMO):
        encoder.encode((*TRAILERS, (b"x", b"%d" % number)))
    assert len(encoder._blocks) <= MEMO
    assert len(encoder._fields) <= MEMO


@pytest.mark.parametrize("field", [(b"Upper", b"x"), (b"x", b"a\r\nb"), (b"x", b" a"), (b"connection", b"close")])
def test_what_can_not_be_sent_changes_nothing(field: tuple[bytes, bytes]) -> None:
    encoder = HeaderEncoder()
    encoder.resize(100)
    with pytest.raises(LocalProtocolError):
        encoder.encode((*RESPONSE, field))
    decoder = Decoder()
    assert tuple(tuple(pair) for pair in decoder.decode(encoder.encode(RESPONSE), raw=True)) == RESPONSE


@pytest.mark.parametrize(
    ("value", "prefix", "octets"), [(10, 5, b"\x0a"), (1337, 5, b"\x1f\x9a\x0a"), (42, 8, b"\x2a")]
)
def test_integers_of_rfc_7541_c_1(value: int, prefix: int, octets: bytes) -> None:
    assert integer(value, prefix, 0) == octets

"""Metadata and timeouts as header fields."""

from __future__ import annotations

import math

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.rpc import metadata as module
from nebuladb.rpc.metadata import (
    LONGEST_TIMEOUT,
    MetadataError,
    Value,
    decode_metadata,
    encode_metadata,
    format_timeout,
    parse_timeout,
)

NAMES = st.from_regex(r"[a-z0-9_.\-]{1,12}", fullmatch=True).filter(lambda name: name not in module.RESERVED)
TEXTS = st.from_regex(r"[\x20-\x7e]{0,20}", fullmatch=True).map(lambda text: text.strip(" "))


@st.composite
def metadata(draw: st.DrawFn) -> tuple[str, Value]:
    name = draw(NAMES)
    if draw(st.booleans()) or name.endswith("-bin"):
        return (name if name.endswith("-bin") else name + "-bin"), draw(st.binary(max_size=40))
    return name, draw(TEXTS)


@settings(deadline=None)
@given(st.lists(metadata(), max_size=8))
def test_what_is_sent_is_what_arrives(sent: list[tuple[str, Value]]) -> None:
    assert decode_metadata(encode_metadata(sent)) == grpc.aio.Metadata(*sent)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upper", "x"),
        ("", "x"),
        (":path", "/"),
        ("a b", "x"),
        ("grpc-status", "0"),
        ("te", "trailers"),
        ("key", "line\nbreak"),
        ("key", "\u00fc"),
        ("key", b"\xff"),
        ("key", " led by a space"),
        ("key", "followed by one "),
        ("key-bin", "text"),
        ("key", 7),
        (b"key", "x"),
    ],
)
def test_what_cannot_be_sent_is_refused(name: str, value: Value) -> None:
    with pytest.raises(MetadataError):
        encode_metadata([(name, value)])


def test_bytes_of_printable_text_are_text() -> None:
    assert encode_metadata([("key", b"text")]) == ((b"key", b"text"),)


def test_the_transports_own_headers_are_no_metadata() -> None:
    fields = (
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"user-agent", b"me"),
    )
    assert tuple(decode_metadata(fields)) == (("user-agent", "me"),)


@pytest.mark.parametrize("value", [b"AQI=", b"AQI", b" AQI= "])
def test_base64_comes_padded_or_not(value: bytes) -> None:
    assert decode_metadata([(b"k-bin", value)])["k-bin"] == b"\1\2"


def test_joined_binary_values_are_several() -> None:
    assert decode_metadata([(b"k-bin", b"AQ,Ag==,")]).get_all("k-bin") == [b"\1", b"\2", b""]


@pytest.mark.parametrize("value", [b"A", b"A*==", b"AQ=I", b"\xff\xff"])
def test_what_is_no_base64_is_refused(value: bytes) -> None:
    with pytest.raises(MetadataError):
        decode_metadata([(b"k-bin", value)])


def test_foreign_text_is_shown() -> None:
    decoded = decode_metadata([(b"a", "\u00fc".encode()), (b"b", b"\xfc")])
    assert tuple(decoded) == (("a", "\u00fc"), ("b", "\u00fc"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5.0, b"5000000u"),
        (0.25, b"250000u"),
        (60.0, b"60000m"),
        (4.98271, b"4990000u"),
        (0.0, b"1n"),
        (-1.0, b"1n"),
        (math.inf, b"99999999H"),
        (1e300, b"99999999H"),
    ],
)
def test_timeouts_have_three_digits(seconds: float, text: bytes) -> None:
    assert format_timeout(seconds) == text


@settings(deadline=None)
@given(st.floats(min_value=1e-6, max_value=LONGEST_TIMEOUT))
def test_a_timeout_is_never_cut_and_grows_by_a_hundredth_at_most(seconds: float) -> None:
    text = format_timeout(seconds)
    assert len(text) <= 9
    assert seconds * (1 - 1e-9) <= parse_timeout(text) <= max(seconds * 1.0101, 2e-6)


@pytest.mark.parametrize(
    "value", [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b"1_0S", b"123456789S", b"1 S", b"1.5S", b"\xb2S"]
)
def test_what_is_no_timeout_is_refused(value: bytes) -> None:
    with pytest.raises(MetadataError):
        parse_timeout(value)


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"2H", 7200.0), (b"3M", 180.0), (b"4S", 4.0), (b"5m", 0.005), (b"6u", 6e-6), (b"7n", 7e-9)]
)
def test_every_unit(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)

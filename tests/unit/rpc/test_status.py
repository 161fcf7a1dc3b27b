"""Trailers, messages, and what HTTP's failures mean."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.metadata import MetadataError
from nebuladb.rpc.status import (
    MAX_MESSAGE,
    OK_TRAILERS,
    decode_message,
    encode_message,
    parse_trailers,
    reset_status,
    trailers,
)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_a_message_arrives_as_it_was(text: str) -> None:
    encoded = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert encoded == encoded.strip()
    assert decode_message(encoded) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    "text", ["\u00fc" * MAX_MESSAGE, "a" + "\u00fc" * MAX_MESSAGE, "ab" + "%" * MAX_MESSAGE, "x " * 4096]
)
def test_a_long_message_is_cut_between_escapes(text: str) -> None:
    encoded = encode_message(text)
    assert MAX_MESSAGE - 3 <= len(encoded) <= MAX_MESSAGE
    assert text.startswith(decode_message(encoded).rstrip("\ufffd"))


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"100%", "100%"), (b"%zz%4", "%zz%4"), (b"%41%62", "Ab"), (b"%ff", "\ufffd"), (b"\xff", "\ufffd"), (b"%", "%")],
)
def test_a_broken_message_is_shown(raw: bytes, text: str) -> None:
    assert decode_message(raw) == text


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_arrives(code: grpc.StatusCode) -> None:
    status = parse_trailers(trailers(code, "why \u00fc", [("grpc-status-details-bin", b"\0\1"), ("key", "value")]))
    assert status.code is code
    assert status.details == "why \u00fc"
    assert tuple(status.trailing) == (("grpc-status-details-bin", b"\0\1"), ("key", "value"))


def test_success_is_one_constant() -> None:
    assert trailers(grpc.StatusCode.OK) is OK_TRAILERS
    assert trailers(grpc.StatusCode.OK, "", ()) is OK_TRAILERS
    assert parse_trailers(OK_TRAILERS).code is grpc.StatusCode.OK


@pytest.mark.parametrize("number", [b"17", b"x", b"", b"00", b"-1"])
def test_an_unknown_code_is_unknown(number: bytes) -> None:
    assert parse_trailers(((b"grpc-status", number),)).code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("http", "code"),
    [
        (b"400", grpc.StatusCode.INTERNAL),
        (b"401", grpc.StatusCode.UNAUTHENTICATED),
        (b"403", grpc.StatusCode.PERMISSION_DENIED),
        (b"404", grpc.StatusCode.UNIMPLEMENTED),
        (b"503", grpc.StatusCode.UNAVAILABLE),
        (b"500", grpc.StatusCode.UNKNOWN),
        (b"200", grpc.StatusCode.UNKNOWN),
    ],
)
def test_without_a_status_http_speaks(http: bytes, code: grpc.StatusCode) -> None:
    assert parse_trailers(((b":status", http),)).code is code
    assert parse_trailers(((b":status", http), (b"grpc-status", b"5"))).code is grpc.StatusCode.NOT_FOUND


def test_broken_binary_trailers_are_an_error() -> None:
    with pytest.raises(MetadataError):
        parse_trailers(((b"grpc-status", b"0"), (b"x-bin", b"*")))


def test_resets_mean_what_the_spec_says() -> None:
    assert reset_status(ErrorCode.REFUSED_STREAM) is grpc.StatusCode.UNAVAILABLE
    assert reset_status(ErrorCode.CANCEL) is grpc.StatusCode.CANCELLED
    assert reset_status(ErrorCode.ENHANCE_YOUR_CALM) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reset_status(ErrorCode.INADEQUATE_SECURITY) is grpc.StatusCode.PERMISSION_DENIED
    assert reset_status(ErrorCode.PROTOCOL_ERROR) is grpc.StatusCode.INTERNAL

"""Cached HPACK decoding equals a fresh decoder, over any sequence of blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.rpc.http2 import ErrorCode, Fields, Limits, RemoteProtocolError
from nebuladb.rpc.http2.decoder import CACHED_BLOCKS, CACHED_OCTETS, TOO_LARGE, HeaderDecoder
from nebuladb.rpc.http2.encoder import HeaderEncoder
from nebuladb.rpc.http2.headers import Kind
from nebuladb.rpc.http2.limits import HARD_FACTOR
from tests.unit.rpc.http2.ends import REQUEST

FIELDS = st.sampled_from(
    (
        *REQUEST,
        (b"grpc-timeout", b"1S"),
        (b"grpc-timeout", b"2S"),
        (b"authorization", b"Bearer x"),
        (b"x-a", b"a" * 90),
        (b"x-b", b"b" * 90),
        (b"x-empty", b""),
    )
)
LISTS = st.lists(FIELDS, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), LISTS, st.sampled_from(("index", "never", "plain")), st.booleans()),
        st.tuples(st.just("again"), st.integers(0, 30)),
        st.tuples(st.just("resize"), st.sampled_from((0, 40, 150, 300, 4096))),
        st.tuples(st.just("raw"), st.binary(max_size=12)),
        st.tuples(st.just("indexes"), st.lists(st.integers(0x80, 0xC8), max_size=5)),
    ),
    max_size=25,
)


def plain(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Literals without indexing."""
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)


@given(steps=STEPS)
@settings(deadline=None, max_examples=300)
def test_it_equals_a_fresh_decoder(steps: list[tuple[object, ...]]) -> None:
    limits = Limits(header_list=400)
    ours, theirs, encoder = HeaderDecoder(limits), Decoder(400 * HARD_FACTOR), Encoder()
    blocks: list[bytes] = [b""]
    for step in steps:
        match step:
            case ("send", list() as fields, "plain", _):
                block = plain(fields)
            case ("send", list() as fields, how, bool() as huffman):
                sent = [NeverIndexedHeaderTuple(*field) if how == "never" else field for field in fields]
                block = encoder.encode(sent, huffman=huffman)
            case ("again", int() as number):
                block = blocks[number % len(blocks)]
            case ("resize", int() as size):
                encoder.header_table_size = size
                continue
            case ("raw", bytes() as block):
                pass
            case (_, list() as octets):
                block = bytes(octets)
        blocks.append(block)
        try:
            expected: Fields | None = tuple((name, value) for name, value in theirs.decode(block, raw=True))
        except HPACKError:
            expected = None
        if expected is None:
            with pytest.raises(RemoteProtocolError):
                ours.decode(block)
            return
        try:
            got = ours.decode(block)
        except RemoteProtocolError:
            # The one thing that the library lets pass and we don't: more than two size updates.
            assert block[0] & 0xE0 == 0x20
            return
        assert got.fields == expected
        assert got.size == sum(32 + len(name) + len(value) for name, value in expected)
        assert ours._table.dynamic_entries == theirs.header_table.dynamic_entries
        assert ours._table.maxsize == theirs.header_table.maxsize


def test_a_repeated_block_is_one_object_whatever_moved_its_indexes() -> None:
    decoder, encoder = HeaderDecoder(Limits()), HeaderEncoder()
    decoder.decode(encoder.encode(REQUEST))
    indexed = encoder.encode(REQUEST)
    assert len(indexed) == len(REQUEST)
    first = decoder.decode(indexed)
    assert decoder.known == {indexed: first}
    assert decoder.decode(indexed) is first
    decoder.decode(encoder.encode(((b"user-agent", b"other"),)))
    assert decoder.known == {}
    moved = encoder.encode(REQUEST)
    assert moved != indexed
    assert decoder.decode(moved) is first


def test_a_long_literal_is_cached_too() -> None:
    decoder, encoder = HeaderDecoder(Limits()), HeaderEncoder()
    fields = (*REQUEST, (b"authorization", b"Bearer " + b"t" * 900))
    decoder.decode(encoder.encode(fields))
    block = encoder.encode(fields)
    assert decoder.decode(block) is decoder.decode(block)
    assert decoder.decode(block).fields == fields


def test_old_octets_under_a_new_table_mean_something_else() -> None:
    decoder, encoder = HeaderDecoder(Limits()), Encoder()
    encoder.encode([(b"a", b"1")])
    decoder.decode(b"\x40\x01a\x011")
    assert decoder.decode(b"\xbe").fields == ((b"a", b"1"),)
    decoder.decode(b"\x40\x01b\x012")
    assert decoder.decode(b"\xbe").fields == ((b"b", b"2"),)


def test_a_resized_table_empties_the_cache_too() -> None:
    decoder = HeaderDecoder(Limits())
    decoder.decode(b"\x40\x01a\x011")
    assert decoder.decode(b"\xbe").fields == ((b"a", b"1"),)
    decoder.decode(b"\x20")
    with pytest.raises(RemoteProtocolError):
        decoder.decode(b"\xbe")


def test_after_the_acknowledgement_the_peer_must_shrink_its_table() -> None:
    decoder = HeaderDecoder(Limits(header_table=100))
    decoder.decode(b"\x82")
    decoder.allow_table(100)
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.decode(b"\x82")
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR
    decoder = HeaderDecoder(Limits(header_table=100))
    decoder.allow_table(100)
    assert decoder.decode(b"\x3f\x45\x82").fields == ((b":method", b"GET"),)
    assert decoder.decode(b"\x82").fields == ((b":method", b"GET"),)


def test_size_updates_are_bounded() -> None:
    decoder = HeaderDecoder(Limits())
    assert decoder.decode(b"\x20\x3f\xe1\x1f").fields == ()
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.decode(b"\x20" * 3)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


def test_list_bounds_soft_and_hard() -> None:
    limits = Limits(header_list=1000, header_fields=10)
    decoder = HeaderDecoder(limits)
    assert not decoder.decode(plain([(b"x", b"y")] * 10)).fault
    assert decoder.decode(plain([(b"x", b"y")] * 11)).fault is TOO_LARGE
    assert decoder.decode(plain([(b"x", b"y" * 100)] * 9)).fault is TOO_LARGE
    # A bomb: an entry of 900 octets, referred to again and again.
    decoder.decode(b"\x40\x01x\x7f\xe9\x06" + b"y" * 1000)
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.decode(b"\xbe" * 1000)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    with pytest.raises(RemoteProtocolError):
        HeaderDecoder(replace(limits, header_block=10)).decode(b"\x82" * 11)


def test_too_large_or_malformed_is_never_on_the_short_way() -> None:
    decoder = HeaderDecoder(Limits(header_fields=5))
    for _ in range(2):
        assert decoder.decode(plain([*REQUEST])).plain is Kind.MALFORMED
        assert decoder.decode(plain([*REQUEST[:4], (b"content-length", b"1")])).plain is Kind.MALFORMED
        assert decoder.decode(plain([*REQUEST[:4]])).plain is Kind.REQUEST


def test_caches_are_bounded_and_keep_what_is_used() -> None:
    decoder = HeaderDecoder(Limits())
    used = plain([*REQUEST])
    kept = decoder.decode(used)
    for number in range(10 * CACHED_BLOCKS):
        decoder.decode(plain([(b"grpc-timeout", b"%du" % number)]))
        assert decoder.decode(used) is kept
        assert max(len(decoder.known), len(decoder._known_old)) <= CACHED_BLOCKS
        assert max(len(decoder._lists), len(decoder._lists_old)) <= CACHED_BLOCKS
    for number in range(100):
        decoder.decode(plain([(b"x-%d" % number, b"v" * 120)] * 20))
        assert sum(block.size for block in decoder._lists.values()) <= CACHED_OCTETS
        assert sum(block.size + len(key) for key, block in decoder.known.items()) <= CACHED_OCTETS

from __future__ import annotations

import collections
import itertools
import zlib

import grpc
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.rpc import compression, framing
from nebuladb.rpc.framing import MessageReader, Packed, frame, frame_compressed, unframe
from nebuladb.rpc.status import StatusError

LIMIT = 1000
MESSAGES = st.lists(st.binary(max_size=200), max_size=8)


def code(error: pytest.ExceptionInfo[StatusError]) -> grpc.StatusCode:
    return error.value.code


def test_a_frame_is_flag_length_message() -> None:
    assert frame(b"abc") == b"\0\0\0\0\3abc"
    assert frame(b"") == b"\0\0\0\0\0"
    assert unframe(b"\0\0\0\0\3abc", LIMIT) == b"abc"


def test_what_compression_does_not_shrink_goes_plain() -> None:
    gzip = compression.compressor("gzip")
    assert gzip is not None
    assert frame_compressed(b"abc", gzip) == frame(b"abc")
    packed = frame_compressed(bytes(500), gzip)
    assert packed[0] == 1
    assert unframe(packed, LIMIT, compression.decompressor("gzip")) == bytes(500)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", grpc.StatusCode.INTERNAL),
        (b"\0\0\0", grpc.StatusCode.INTERNAL),
        (b"\0\0\0\0\3ab", grpc.StatusCode.INTERNAL),
        (b"\0\0\0\0\3abcd", grpc.StatusCode.INTERNAL),
        (b"\1\0\0\0\3abc", grpc.StatusCode.INTERNAL),
        (b"\2\0\0\0\3abc", grpc.StatusCode.INTERNAL),
        (frame(bytes(LIMIT + 1)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_a_body_that_is_not_one_message_is_refused(data: bytes, expected: grpc.StatusCode) -> None:
    with pytest.raises(StatusError) as error:
        unframe(data, LIMIT)
    assert code(error) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\1\0\0\0\3", grpc.StatusCode.INTERNAL),
        (b"\x80\0\0\0\0", grpc.StatusCode.INTERNAL),
        (b"\0\xff\xff\xff\xff", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
@pytest.mark.parametrize("step", [1, 5])
def test_a_prefix_that_can_only_be_wrong_is_refused_at_once(data: bytes, expected: grpc.StatusCode, step: int) -> None:
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    with pytest.raises(StatusError) as error:
        collections.deque(map(MessageReader(LIMIT).feed, parts), maxlen=0)
    assert code(error) == expected


def test_a_message_of_just_the_limit_passes() -> None:
    assert MessageReader(LIMIT).feed(frame(bytes(LIMIT))) == [bytes(LIMIT)]
    assert MessageReader(0).feed(frame(b"")) == [b""]


def test_the_end_inside_a_message_is_an_error() -> None:
    reader = MessageReader(LIMIT)
    assert reader.feed(frame(b"whole") + b"\0\0") == [b"whole"]
    with pytest.raises(StatusError, match="unexpected EOF"):
        reader.ended()
    assert reader.feed(b"\0\0\0") == [b""]
    reader.ended()


@settings(max_examples=200, deadline=None)
@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 2000), max_size=20), encoding=st.sampled_from(["gzip", "zstd"]))
def test_messages_come_whole_however_the_bytes_are_split(messages: list[bytes], cuts: list[int], encoding: str) -> None:
    packer, unpacker = compression.compressor(encoding), compression.decompressor(encoding)
    assert packer is not None
    data = b"".join(frame_compressed(part, packer) if len(part) % 2 else frame(part) for part in messages)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader, found = MessageReader(LIMIT, unpacker), []
    for begin, end in itertools.pairwise(edges):
        found += reader.feed(data[begin:end])
    reader.ended()
    assert found == messages


def test_a_lazy_reader_inflates_when_asked() -> None:
    gzip = compression.compressor("gzip")
    assert gzip is not None
    reader = MessageReader(LIMIT, compression.decompressor("gzip"), lazy=True)
    plain, packed, bomb = reader.feed(b"".join(frame_compressed(bytes(size), gzip) for size in (1, LIMIT, LIMIT + 1)))
    assert plain == b"\0"
    assert isinstance(packed, Packed)
    assert len(packed) < 100
    assert reader.unpack(packed) == bytes(LIMIT)
    assert isinstance(bomb, Packed)
    with pytest.raises(StatusError):
        reader.unpack(bomb)


def test_a_reader_keeps_no_more_than_one_message() -> None:
    reader = MessageReader(LIMIT)
    for byte in frame(bytes(LIMIT)) * 3:
        reader.feed(bytes((byte,)))
        assert len(reader.buffer) < LIMIT + framing.PREFIX_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
class TestCompression:
    def test_there_and_back(self, encoding: str) -> None:
        packer, unpacker = compression.compressor(encoding), compression.decompressor(encoding)
        assert packer is not None
        assert unpacker is not None
        for message in (b"", b"a", bytes(LIMIT), b"abc" * 300):
            assert unpacker(packer(message), LIMIT) == message

    def test_a_bomb_is_refused(self, encoding: str) -> None:
        packer, unpacker = compression.compressor(encoding), compression.decompressor(encoding)
        assert packer is not None
        assert unpacker is not None
        assert len(unpacker(packer(bytes(LIMIT)), LIMIT)) == LIMIT
        for size in (LIMIT + 1, 10 << 20):
            with pytest.raises(StatusError) as error:
                unpacker(packer(bytes(size)), LIMIT)
            assert code(error) == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(StatusError):
            unpacker(packer(b"a"), 0)

    def test_damage_is_told(self, encoding: str) -> None:
        packer, unpacker = compression.compressor(encoding), compression.decompressor(encoding)
        assert packer is not None
        assert unpacker is not None
        whole = packer(b"abc" * 100)
        for data in (b"", b"junkjunkjunk", whole[:-1], whole + b"x", whole[: len(whole) // 2]):
            with pytest.raises(StatusError) as error:
                unpacker(data, LIMIT)
            assert code(error) == grpc.StatusCode.INTERNAL


def test_a_zstd_frame_that_hides_its_size_is_bounded_too() -> None:
    unpacker = compression.decompressor("zstd")
    assert unpacker is not None
    packer = zstandard.ZstdCompressor(write_content_size=False)
    assert unpacker(packer.compress(bytes(LIMIT)), LIMIT) == bytes(LIMIT)
    with pytest.raises(StatusError) as error:
        unpacker(packer.compress(bytes(LIMIT + 1)), LIMIT)
    assert code(error) == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(StatusError) as error:
        unpacker(packer.compress(bytes(LIMIT))[:-1], LIMIT)
    assert code(error) == grpc.StatusCode.INTERNAL


def test_a_zstd_frame_may_not_ask_for_a_huge_window() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = packer.compress(b"a" * 100) + packer.flush()
    unpacker = compression.decompressor("zstd")
    assert unpacker is not None
    with pytest.raises(StatusError):
        unpacker(data, LIMIT)


def test_names() -> None:
    assert compression.compressor("identity") is None
    assert compression.decompressor("identity") is None
    with pytest.raises(ValueError, match="no compression"):
        compression.compressor("snappy")
    with pytest.raises(StatusError) as error:
        compression.decompressor("snappy")
    assert code(error) == grpc.StatusCode.UNIMPLEMENTED
    assert set(compression.ACCEPTED.decode().split(",")) == {"identity", "gzip", "deflate", "zstd"}
    assert zlib.decompressobj(31).decompress(compression._COMPRESS["gzip"](b"gzip by name")) == b"gzip by name"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        frame(b"message")[:-1],
        frame(b"message") + b"\0",
        frame(b"message") * 2,
        b"\1" + frame(b"message")[1:],
        frame(bytes(101)),
    ],
    ids=["nothing", "no whole prefix", "cut short", "more behind it", "two", "flags", "too large"],
)
def test_only_one_whole_plain_message_is_offered(data: bytes) -> None:
    heard: list[bytes] = []
    reader = MessageReader(100)
    assert not reader.offer(frame(b"message")), "nobody listens"
    reader.listener = heard.append
    assert not reader.offer(data)
    assert not heard
    assert not reader.buffer
    assert reader.offer(frame(b"message"))
    assert reader.offer(frame(b""))
    assert heard == [b"message", b""]


def test_a_message_is_not_offered_past_one_that_has_begun() -> None:
    heard: list[bytes] = []
    reader = MessageReader(100)
    reader.listener = heard.append
    assert reader.feed(b"\0\0") == []
    assert not reader.offer(frame(b"message"))
    assert not heard

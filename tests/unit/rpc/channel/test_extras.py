"""Interceptors, compression, TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc
from nebuladb.rpc.framing import MessageReader, frame
from nebuladb.rpc.http2 import DataReceived, Fields, HeadersReceived
from tests.rpc.certificates import Authority, needs_openssl
from tests.unit.rpc.channel.conftest import World
from tests.unit.rpc.channel.echo import (
    ENGINES,
    PAIRS,
    SECONDS,
    SERVICE,
    Echo,
    Servers,
    open_channel,
    ready,
    status_of,
    unary,
)
from tests.unit.rpc.channel.scripted import HEADERS, TRAILERS, Peer, Scripted

# --- interceptors ----------------------------------------------------------------------------------------------------


class Signs:
    """What each of the four below does: add metadata, and write down that it was here."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def signed(self, details: Any) -> Any:
        assert isinstance(details.method, bytes)
        assert details.metadata is not None
        self.log.append(self.name)
        details.metadata.add("signed-by", self.name)
        return details


class UnaryUnary(Signs, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if request == b"mine":
            return b"from " + self.name.encode()
        call = await continuation(self.signed(client_call_details), request)
        if request == b"inspect":
            self.log.append(f"{self.name}: {(await call.code()).name}")
        return call


class UnaryStream(Signs, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(self.signed(client_call_details), request)
        return self.doubled(call) if self.name == "doubling" else call

    async def doubled(self, call: Any) -> AsyncIterator[bytes]:
        async for message in call:
            yield message + message


class StreamUnary(Signs, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.signed(client_call_details), request_iterator)


class StreamStream(Signs, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.signed(client_call_details), request_iterator)


@pytest.fixture(params=PAIRS, ids="-".join)
async def signed(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[tuple[World, list[str]]]:
    """A channel with two interceptors of each kind, and what they write down."""
    client, server = request.param
    echo, log = Echo(), list[str]()
    _, address = await servers.start(server, echo)
    kinds = UnaryUnary, UnaryStream, StreamUnary, StreamStream
    interceptors = [kind(name, log) for name in ("first", "doubling") for kind in kinds]
    async with open_channel(client, address, interceptors=interceptors) as channel:
        yield World(echo, channel, client, server, address), log


async def test_interceptors_of_every_kind_in_order(signed: tuple[World, list[str]]) -> None:
    world, log = signed
    assert await world.unary(b"x", metadata=(("key", "value"),)) == b"x"
    assert [message async for message in world.many(b"2")] == [b"00", b"11"]
    assert await world.collect(iter([b"a", b"b"])) == b"a,b"
    assert [message async for message in world.chat(iter([b"a", b"b"]))] == [b"a", b"b"]
    assert log == ["first", "doubling"] * 4
    assert world.echo.metadata[0]["key"] == "value"
    assert all(seen["signed-by"] == "doubling" for seen in world.echo.metadata)


async def test_an_intercepted_call_is_asked_as_any_other(signed: tuple[World, list[str]]) -> None:
    world, log = signed
    call = world.unary(b"metadata")
    told: list[Any] = []
    call.add_done_callback(told.append)
    assert (await call.initial_metadata())["first"] == "1"
    assert await call == b"metadata"
    assert (await call.trailing_metadata())["last-bin"] == b"\xfe"
    assert (await call.code(), await call.details()) == (grpc.StatusCode.OK, "")
    assert (call.done(), call.cancelled(), call.cancel()) == (True, False, False)
    assert told == [call]
    log.clear()
    assert await world.unary(b"inspect") == b"inspect"
    assert log == ["first", "doubling", "doubling: OK", "first: OK"]


async def test_an_interceptors_own_answer(signed: tuple[World, list[str]]) -> None:
    world, _ = signed
    call = world.unary(b"mine")
    assert await call == b"from first"
    assert await call.code() is grpc.StatusCode.OK
    assert world.echo.calls == 0


async def test_an_error_passes_interceptors(signed: tuple[World, list[str]]) -> None:
    world, _ = signed
    call = world.unary(b"error")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.trailing_metadata()["why"] == "told"
    assert await call.code() is grpc.StatusCode.NOT_FOUND


async def test_writing_and_reading_through_interceptors(signed: tuple[World, list[str]]) -> None:
    world, _ = signed
    call = world.chat()
    for message in (b"a", b"b"):
        await call.write(message)
        assert await call.read() == message
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"late")
    summed = world.collect()
    await summed.write(b"x")
    await summed.done_writing()
    assert await summed == b"x"


async def test_cancelling_an_intercepted_call(signed: tuple[World, list[str]]) -> None:
    world, _ = signed
    early = world.unary(b"x")
    assert early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early
    call = world.unary(b"wait")
    await asyncio.wait_for(world.echo.started.wait(), SECONDS)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await asyncio.wait_for(world.echo.cancelled.wait(), SECONDS)


async def test_an_interceptor_may_call_another_method() -> None:
    class Elsewhere(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            return await continuation(client_call_details._replace(method=b"/else/Where"), request)

    paths = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            paths.append(dict(event.headers.fields)[b":path"])
            peer.answer(event.stream)

    async with (
        Scripted(script) as server,
        rpc.insecure_channel(server.address, interceptors=[Elsewhere()]) as channel,
    ):
        await unary(channel)(b"x")
    assert paths == [b"/else/Where"]


async def test_what_is_no_interceptor() -> None:
    with pytest.raises(ValueError, match="interceptor"):
        rpc.insecure_channel("127.0.0.1:1", interceptors=[object()])  # type: ignore[list-item]


# --- compression -----------------------------------------------------------------------------------------------------

TEXT = b"to be or not to be, " * 1000


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate, "zstd"])
async def test_compressed_requests(servers: Servers, engine: str, compression: Any) -> None:
    _, address = await servers.start(engine, Echo())
    async with rpc.insecure_channel(address, compression=compression) as channel:
        for _ in range(2):
            assert await unary(channel)(TEXT) == TEXT
        chat = channel.stream_stream(f"/{SERVICE}/Chat")
        assert [message async for message in chat(iter([TEXT, b"", TEXT]))] == [TEXT, b"", TEXT]
        plain = unary(channel)(TEXT, compression=grpc.Compression.NoCompression)
        assert await plain == TEXT


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_answers_of_grpcio(servers: Servers, compression: Any) -> None:
    echo = Echo()
    _, address = await servers.start("grpcio", echo, compression=compression)
    async with rpc.insecure_channel(address) as channel:
        large = bytes(1 << 20)
        assert await unary(channel)(large) == large
        assert [m async for m in channel.stream_stream(f"/{SERVICE}/Chat")(iter([TEXT]))] == [TEXT]
    options = (("grpc.max_receive_message_length", 1 << 16),)
    async with rpc.insecure_channel(address, options=options) as channel:
        assert await status_of(unary(channel)(large)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        chat = channel.stream_stream(f"/{SERVICE}/Chat")(iter([TEXT, large]))
        assert await chat.read() == TEXT
        assert await status_of(chat.read()) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_zstd_only_for_a_server_that_said_it_takes_it() -> None:
    seen: list[tuple[bytes | None, int]] = []
    accepts: Fields = ()
    offers: list[Fields] = [
        (),
        ((b"grpc-accept-encoding", b"identity,gzip"),),
        ((b"grpc-accept-encoding", b"gzip, zstd"),),
    ]

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            assert event.data is not None
            seen.append((dict(event.headers.fields).get(b"grpc-encoding"), len(event.data)))
            peer.h2.respond(event.stream, HEADERS + accepts, frame(b""), TRAILERS)

    async with Scripted(script) as server, rpc.insecure_channel(server.address, compression="zstd") as channel:
        for accepts in offers:  # noqa: B007
            await unary(channel)(TEXT[:8000])
        await unary(channel)(TEXT[:8000])
    assert [encoding for encoding, _ in seen] == [None, None, None, b"zstd"]
    assert seen[3][1] < 800 < 8000 < seen[0][1]


async def test_an_encoding_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="lz"):
        rpc.insecure_channel("127.0.0.1:1", compression="lz")


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_message_that_is_too_large_to_send(kind: str) -> None:
    options = (("grpc.max_send_message_length", 1000),)
    async with Scripted() as server, rpc.insecure_channel(server.address, options=options) as channel:
        if kind == "unary":
            assert await unary(channel)(bytes(1000)) == frame(bytes(1000))[5:]
            assert await status_of(unary(channel)(bytes(1001))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        else:
            await ready(channel)
            call = channel.stream_unary(f"/{SERVICE}/Collect")()
            assert await status_of(call.write(bytes(1001))) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_that_the_server_does_not_take() -> None:
    """It says so in its settings, and would drop the stream without a word of why."""
    from nebuladb.rpc.http2 import Limits

    async with Scripted(limits=Limits(header_list=1000)) as server, rpc.insecure_channel(server.address) as channel:
        await unary(channel)(b"x")
        call = unary(channel)(b"x", metadata=(("key", "x" * 1000),))
        assert await status_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(channel)(b"x", metadata=(("key", "x"),)) == b"x"


async def test_a_large_message_in_pieces_is_cut_out_whole() -> None:
    """The test's own reader, that what is read is what was written."""
    reader = MessageReader(1 << 20)
    collected: list[bytes] = []

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, DataReceived):
            collected.extend(reader.feed(event.data))
            peer.h2.consumed(event.stream, len(event.data))
            if event.ended:
                peer.answer(event.stream)

    messages = [bytes([number]) * (number * 1000) for number in range(200)]
    async with Scripted(script) as server, rpc.insecure_channel(server.address) as channel:
        assert await channel.stream_unary(f"/{SERVICE}/Collect")(iter(messages)) == b"answer"
    assert collected == messages


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def server_credentials(engine: str, key: Any, chain: Any, roots: Any = None) -> Any:
    make = rpc.ssl_server_credentials if engine == "nebula" else grpc.ssl_server_credentials
    pair = key.read_bytes(), chain.read_bytes()
    return make([pair], roots and roots.read_bytes(), require_client_auth=roots is not None)


@needs_openssl
@pytest.mark.parametrize("engine", ENGINES)
async def test_tls(servers: Servers, authority: Authority, engine: str) -> None:
    credentials = server_credentials(engine, *authority.issue("node"))
    _, address = await servers.start(engine, Echo(), credentials=credentials)
    trusting = rpc.ssl_channel_credentials(authority.certificate)
    async with rpc.secure_channel(address, trusting) as channel:
        large = bytes(1 << 20)
        assert await unary(channel)(large) == large
        assert [m async for m in channel.unary_stream(f"/{SERVICE}/Many")(b"100")][-1] == b"99"
    async with rpc.secure_channel(address, trusting, options=(("grpc.ssl_target_name_override", "node"),)) as channel:
        assert await unary(channel)(b"x") == b"x"
    async with rpc.secure_channel(address, trusting, options=(("grpc.ssl_target_name_override", "else"),)) as channel:
        assert await status_of(unary(channel)(b"x")) is grpc.StatusCode.UNAVAILABLE
    async with rpc.secure_channel(address, rpc.ssl_channel_credentials()) as channel:
        call = unary(channel)(b"x")
        assert await status_of(call) is grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in await call.details()
    async with rpc.insecure_channel(address) as channel:
        assert await status_of(unary(channel)(b"x")) is grpc.StatusCode.UNAVAILABLE


@needs_openssl
@pytest.mark.parametrize("engine", ENGINES)
async def test_mutual_tls(servers: Servers, authority: Authority, engine: str) -> None:
    credentials = server_credentials(engine, *authority.issue("node"), authority.certificate)
    _, address = await servers.start(engine, Echo(), credentials=credentials)
    known = rpc.ssl_channel_credentials(authority.certificate, *authority.issue("client"))
    async with rpc.secure_channel(address, known) as channel:
        assert await unary(channel)(b"x") == b"x"
    async with rpc.secure_channel(address, rpc.ssl_channel_credentials(authority.certificate)) as channel:
        assert await status_of(unary(channel)(b"x")) is grpc.StatusCode.UNAVAILABLE


@needs_openssl
async def test_a_clients_certificate_may_change(servers: Servers, authority: Authority) -> None:
    """The next connection shows the new one, and trusts the new roots."""
    other = Authority(authority.folder, "other")
    roots = authority.folder / "roots.pem"
    roots.write_bytes(other.certificate.read_bytes())
    _, address = await servers.start(
        "nebula", Echo(), credentials=server_credentials("nebula", *authority.issue("node"))
    )
    options = (("grpc.initial_reconnect_backoff_ms", 10), ("grpc.max_reconnect_backoff_ms", 10))
    async with rpc.secure_channel(address, rpc.ssl_channel_credentials(roots), options=options) as channel:
        assert await status_of(unary(channel)(b"x")) is grpc.StatusCode.UNAVAILABLE
        roots.write_bytes(authority.certificate.read_bytes())
        assert await unary(channel)(b"x", wait_for_ready=True, timeout=SECONDS) == b"x"


async def test_grpcs_own_credentials_are_refused() -> None:
    with pytest.raises(ValueError, match="ssl_channel_credentials"):
        rpc.secure_channel("127.0.0.1:1", grpc.ssl_channel_credentials())  # type: ignore[arg-type]
    async with rpc.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.UsageError):
            unary(channel)(b"x", credentials=grpc.access_token_call_credentials("token"))

"""TLS: one-sided and mutual, files that change, clients without ALPN."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb import rpc
from nebuladb.rpc import Server
from nebuladb.rpc.serving import lifecycle
from nebuladb.rpc.tls import ServerCredentials
from tests.rpc.certificates import Authority, needs_openssl
from tests.rpc.raw import RawClient
from tests.rpc.service import handlers, path

pytestmark = needs_openssl


async def who(request: bytes, context: Any) -> bytes:
    """Its own answer, and what the connection knows of the client."""
    identities = b",".join(sorted(context.peer_identities() or ()))
    common = b",".join(context.auth_context().get("x509_common_name", ()))
    return b"|".join(((context.peer_identity_key() or "nobody").encode(), common, identities))


@asynccontextmanager
async def secured(credentials: ServerCredentials, **options: Any) -> AsyncIterator[tuple[str, Server]]:
    server = rpc.server(handlers=(handlers({"Who": ("unary_unary", who)}),), **options)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


def trusting(roots: Path, key: Path | None = None, chain: Path | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        roots.read_bytes(), key.read_bytes() if key else None, chain.read_bytes() if chain else None
    )


async def ask(address: str, roots: Path, key: Path | None = None, chain: Path | None = None) -> bytes:
    """`Who` through a grpcio channel of its own."""
    credentials = trusting(roots, key, chain)
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel: Any
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        answer: bytes = await channel.unary_unary(path("Who"))(b"", timeout=10)
        return answer


async def refused(*arguments: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await ask(*arguments)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


async def test_one_sided(authority: Authority, other: Authority) -> None:
    key, chain = authority.issue("server")
    async with secured(rpc.ssl_server_credentials([(key, chain)])) as (address, _):
        assert await ask(address, authority.certificate) == b"nobody||"
        await refused(address, other.certificate)
    credentials = rpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
    async with secured(credentials) as (address, _):
        assert await ask(address, authority.certificate) == b"nobody||"


async def test_an_authority_that_was_made_at_home_is_trusted_as_by_others(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "home", strict=False)
    key, chain = authority.issue("server")
    async with secured(rpc.ssl_server_credentials([(key, chain)])) as (address, _):
        assert await ask(address, authority.certificate) == b"nobody||"
        credentials = rpc.ssl_channel_credentials(authority.certificate)
        async with rpc.secure_channel(address, credentials) as channel:
            assert await channel.unary_unary(path("Who"))(b"", timeout=10) == b"nobody||"


async def test_large_messages_and_streams(authority: Authority) -> None:
    key, chain = authority.issue("server")
    async with secured(rpc.ssl_server_credentials([(key, chain)])) as (address, server):
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        channel: Any
        async with grpc.aio.secure_channel(address, credentials) as channel:
            large = bytes(range(256)) * (1 << 13)
            assert await channel.unary_unary(path("Echo"))(large) == large
            assert len([part async for part in channel.unary_stream(path("Count"))(b"5000")]) == 5000
            assert server.calls == 0


async def test_mutual(authority: Authority, other: Authority) -> None:
    key, chain = authority.issue("server")
    mine, theirs = authority.issue("alice"), other.issue("mallory")
    credentials = rpc.ssl_server_credentials([(key, chain)], authority.certificate, require_client_auth=True)
    async with secured(credentials) as (address, _):
        answer = await ask(address, authority.certificate, *mine)
        assert answer == b"x509_subject_alternative_name|alice|127.0.0.1,alice,localhost"
        await refused(address, authority.certificate)
        await refused(address, authority.certificate, *theirs)
    optional = rpc.ssl_server_credentials([(key, chain)], authority.certificate)
    async with secured(optional) as (address, _):
        assert await ask(address, authority.certificate) == b"nobody||"
        assert (await ask(address, authority.certificate, *mine)).split(b"|")[1] == b"alice"
        await refused(address, authority.certificate, *theirs)


async def test_changed_files_hold_for_new_connections(tmp_path: Path) -> None:
    """Certificate and client roots both; standing connections stay, and nonsense changes nothing."""
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    key, chain = first.issue("server", into="server")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(first.certificate.read_bytes())
    alice, bob = first.issue("alice"), second.issue("bob")
    credentials = rpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    async with secured(credentials) as (address, _):
        assert b"alice" in await ask(address, first.certificate, *alice)
        await refused(address, first.certificate, *bob)
        assert not credentials.refresh()
        channel: Any
        async with grpc.aio.secure_channel(address, trusting(first.certificate, *alice)) as channel:
            assert b"alice" in await channel.unary_unary(path("Who"))(b"")
            chain.write_bytes(chain.read_bytes()[:200])
            assert not credentials.refresh()
            assert b"alice" in await ask(address, first.certificate, *alice)
            second.issue("server", into="server")
            roots.write_bytes(second.certificate.read_bytes())
            assert credentials.refresh()
            assert b"alice" in await channel.unary_unary(path("Who"))(b"")
        assert b"bob" in await ask(address, second.certificate, *bob)
        await refused(address, first.certificate, *bob)
        await refused(address, second.certificate, *alice)


async def test_a_client_without_alpn_is_refused(authority: Authority) -> None:
    key, chain = authority.issue("server")
    async with secured(rpc.ssl_server_credentials([(key, chain)])) as (address, server):
        context = ssl.create_default_context(cafile=str(authority.certificate))
        client = await RawClient.connect(address, hello=False, ssl=context)
        await client.ended()
        await client.close()
        context.set_alpn_protocols(["h2"])
        client = await RawClient.connect(address, ssl=context)
        client.call(1, "Echo", b"x")
        assert await client.end_of(1) == {"grpc-status": "0"}
        await client.close()
        async with asyncio.timeout(10):
            while server._connections:  # noqa: ASYNC110 - the transport says it to the server only
                await asyncio.sleep(0.001)


def test_what_is_no_credentials(authority: Authority, tmp_path: Path) -> None:
    key, chain = authority.issue("server")
    with pytest.raises(ValueError, match="one pair"):
        rpc.ssl_server_credentials([])
    with pytest.raises(ValueError, match="without root certificates"):
        rpc.ssl_server_credentials([(key, chain)], require_client_auth=True)
    with pytest.raises(ssl.SSLError):
        rpc.ssl_server_credentials([(b"no key", b"no certificate")])
    with pytest.raises(FileNotFoundError):
        rpc.ssl_server_credentials([(tmp_path / "absent", chain)])
    with pytest.raises(TypeError, match="ssl_server_credentials"):
        rpc.server().add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(b"", b"")]))


@needs_openssl
def test_roots_that_become_empty_are_not_the_systems(tmp_path: Path) -> None:
    """Whoever writes the file anew begins with nothing in it; `ssl` takes that for "whatever the system trusts"."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(Authority(tmp_path, "first").certificate.read_bytes())
    credentials = rpc.ssl_channel_credentials(roots)
    roots.write_bytes(b"")
    assert not credentials.refresh()
    assert len(credentials.context.get_ca_certs()) == 1
    with pytest.raises(ValueError, match="no certificate"):
        rpc.ssl_channel_credentials(b"\n")


@needs_openssl
def test_roots_may_say_whose_they_are(tmp_path: Path) -> None:
    """As the bundles of Fedora do."""
    authority = Authority(tmp_path, "first")
    roots = "# Főtanúsítvány\n".encode() + authority.certificate.read_bytes()
    assert len(rpc.ssl_channel_credentials(roots).context.get_ca_certs()) == 1


async def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_an_attempt_to_connect_for_which_there_is_no_thread_fails(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None came after it, and calls without a deadline waited for ever."""
    monkeypatch.setattr(asyncio, "to_thread", no_thread)
    credentials = rpc.ssl_channel_credentials(authority.certificate)
    async with rpc.secure_channel("127.0.0.1:1", credentials) as channel, asyncio.timeout(10):
        with pytest.raises(grpc.aio.AioRpcError, match="can't start new thread") as caught:
            await channel.unary_unary(path("Who"))(b"")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_files_are_looked_at_again_after_there_was_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """They never were: certificates would have run out."""
    looked, to_thread = asyncio.Event(), asyncio.to_thread
    tries = iter([no_thread])
    monkeypatch.setattr(lifecycle, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(asyncio, "to_thread", lambda work: next(tries, to_thread)(work))
    loop = asyncio.get_running_loop()
    credentials: Any = SimpleNamespace(refresh=lambda: loop.call_soon_threadsafe(looked.set))
    refreshing = asyncio.create_task(lifecycle._refresh([credentials]))
    async with asyncio.timeout(10):
        await looked.wait()
    refreshing.cancel()

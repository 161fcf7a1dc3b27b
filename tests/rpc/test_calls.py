"""What a handler sees of its call and says about it, as grpcio's client meets it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.rpc.service import channel_to, path, serving

SECRET = "the database's password is swordfish"


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """How a call failed."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def values(metadata: Any, name: str) -> list[Any]:
    return [value for key, value in metadata or () if key == name]


class TestMetadata:
    async def test_both_ways(self) -> None:
        async def show(request: bytes, context: Any) -> bytes:
            seen = dict(context.invocation_metadata())
            await context.send_initial_metadata((("first", seen["text"]), ("first-bin", seen["some-bin"])))
            context.set_trailing_metadata(
                (("last", "näh".encode("ascii", "replace").decode()), ("last-bin", b"\0\xff"))
            )
            assert context.trailing_metadata()[1] == ("last-bin", b"\0\xff")
            return repr(sorted(name for name, _ in context.invocation_metadata())).encode()

        sent = (("text", "a, b"), ("some-bin", bytes(range(256))), ("twice", "1"), ("twice", "2"))
        async with serving({"Show": ("unary_unary", show)}) as (address, _), channel_to(address) as channel:
            call = channel.unary_unary(path("Show"))(b"", metadata=sent)
            names = await call
            assert names == b"['some-bin', 'text', 'twice', 'twice', 'user-agent']"
            assert values(await call.initial_metadata(), "first") == ["a, b"]
            assert values(await call.initial_metadata(), "first-bin") == [bytes(range(256))]
            assert values(await call.trailing_metadata(), "last-bin") == [b"\0\xff"]

    async def test_in_streams(self) -> None:
        async def show(request: bytes, context: Any) -> AsyncIterator[bytes]:
            await context.send_initial_metadata((("first", "1"),))
            yield b"a"
            context.set_trailing_metadata((("last", "2"),))

        async with serving({"Show": ("unary_stream", show)}) as (address, _), channel_to(address) as channel:
            call = channel.unary_stream(path("Show"))(b"")
            assert values(await call.initial_metadata(), "first") == ["1"]
            assert [part async for part in call] == [b"a"]
            assert values(await call.trailing_metadata(), "last") == ["2"]

    async def test_what_can_not_be_sent_is_the_handlers_error(self) -> None:
        async def bad(request: bytes, context: Any) -> bytes:
            context.set_trailing_metadata((("grpc-status", "0"),))
            return b""

        async with serving({"Bad": ("unary_unary", bad)}) as (address, _), channel_to(address) as channel:
            assert (await failure(channel.unary_unary(path("Bad"))(b""))).code() == grpc.StatusCode.UNKNOWN


class TestErrors:
    async def test_abort(self) -> None:
        reached: list[str] = []

        async def abort(request: bytes, context: Any) -> bytes:
            assert context.code() is grpc.StatusCode.OK
            with contextlib.suppress(grpc.aio.AbortError):
                await context.abort(
                    grpc.StatusCode.NOT_FOUND, "no such ключ: 100 %\n", (("grpc-status-details-bin", b"\x08\x05"),)
                )
            reached.append("after")
            assert context.done()
            with pytest.raises(grpc.aio.UsageError):
                await context.abort(grpc.StatusCode.ABORTED, "again")
            return b"nobody gets it"

        async with serving({"Abort": ("unary_unary", abort)}) as (address, server), channel_to(address) as channel:
            error = await failure(channel.unary_unary(path("Abort"))(b""))
            assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such ключ: 100 %\n")
            assert values(error.trailing_metadata(), "grpc-status-details-bin") == [b"\x08\x05"]
            assert reached == ["after"]
            assert server.calls == 0

    async def test_abort_with_ok_is_an_error(self) -> None:
        async def abort(request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.OK, "fine")
            return b""

        async with serving({"Abort": ("unary_unary", abort)}) as (address, _), channel_to(address) as channel:
            assert (await failure(channel.unary_unary(path("Abort"))(b""))).code() == grpc.StatusCode.UNKNOWN

    async def test_abort_after_messages(self) -> None:
        async def some(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"
            await context.abort(grpc.StatusCode.DATA_LOSS, "c is gone")

        async with serving({"Some": ("unary_stream", some)}) as (address, _), channel_to(address) as channel:
            call = channel.unary_stream(path("Some"))(b"")
            assert [await call.read(), await call.read()] == [b"a", b"b"]
            assert (await failure(call.read())).details() == "c is gone"

    async def test_code_and_details_without_abort(self) -> None:
        async def says(request: bytes, context: Any) -> bytes:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details("no more")
            return b"ignored"

        async with serving({"Says": ("unary_unary", says)}) as (address, _), channel_to(address) as channel:
            error = await failure(channel.unary_unary(path("Says"))(b""))
            assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")

    @pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "plain"])
    async def test_an_exception_is_unknown_and_stays_here(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        async def unary(request: bytes, context: Any) -> bytes:
            raise LookupError(SECRET)

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"a"
            raise LookupError(SECRET)

        def plain(request: bytes, context: Any) -> bytes:
            raise LookupError(SECRET)

        functions: dict[str, Any] = {"unary_unary": unary, "unary_stream": stream, "plain": plain}
        more = {"Fails": (kind.replace("plain", "unary_unary"), functions[kind])}
        caplog.set_level(logging.ERROR, "nebuladb.rpc")
        async with serving(more) as (address, server), channel_to(address) as channel:
            if kind == "unary_stream":
                call = channel.unary_stream(path("Fails"))(b"")
                assert await call.read() == b"a"
                error = await failure(call.read())
            else:
                error = await failure(channel.unary_unary(path("Fails"))(b""))
            assert error.code() == grpc.StatusCode.UNKNOWN
            assert SECRET not in str(error.details())
            assert await channel.unary_unary(path("Echo"))(b"still here") == b"still here"
            assert server.calls == 0
        logged = [record for record in caplog.records if record.name == "nebuladb.rpc"]
        assert len(logged) == 1
        assert SECRET in str(logged[0].exc_info)

    async def test_what_does_not_parse_or_serialize(self) -> None:
        def refuse(data: bytes) -> Any:
            raise ValueError(SECRET)

        async def wrong(request: bytes, context: Any) -> Any:
            return 7

        async def echo(request: bytes, context: Any) -> bytes:
            return request

        odd = grpc.method_handlers_generic_handler(
            "odd",
            {
                "Parse": grpc.unary_unary_rpc_method_handler(echo, request_deserializer=refuse),
                "Serialize": grpc.unary_unary_rpc_method_handler(echo, response_serializer=refuse),
                "Type": grpc.unary_unary_rpc_method_handler(wrong),
            },
        )
        async with serving(added=[odd]) as (address, server), channel_to(address) as channel:
            for method in ("Parse", "Serialize", "Type"):
                error = await failure(channel.unary_unary(f"/odd/{method}")(b""))
                assert error.code() == grpc.StatusCode.INTERNAL
                assert SECRET not in str(error.details())
            assert server.calls == 0

    async def test_too_large(self) -> None:
        async def large(request: bytes, context: Any) -> bytes:
            return bytes(2000)

        options = [("grpc.max_receive_message_length", 1000), ("grpc.max_send_message_length", 1000)]
        more = {"Large": ("unary_unary", large)}
        async with serving(more, options=options) as (address, _), channel_to(address) as channel:
            assert await channel.unary_unary(path("Echo"))(bytes(900)) == bytes(900)
            for method, request in (("Echo", bytes(1001)), ("Large", b""), ("Total", bytes(1001))):
                if method == "Total":
                    error = await failure(channel.stream_unary(path(method))(iter([request])))
                else:
                    error = await failure(channel.unary_unary(path(method))(request))
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


class TestTime:
    async def test_the_deadline_ends_the_handler(self) -> None:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def wait(request: bytes, context: Any) -> bytes:
            context.add_done_callback(lambda _: done.append(context.done()))
            assert 0 < context.time_remaining() < 0.3
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                ended.set_result("cancelled")
                raise
            return b""

        done: list[bool] = []
        async with serving({"Wait": ("unary_unary", wait)}) as (address, server), channel_to(address) as channel:
            error = await failure(channel.unary_unary(path("Wait"))(b"", timeout=0.2))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert await asyncio.wait_for(ended, 5) == "cancelled"
            assert done == [True]
            assert server.calls == 0

    async def test_without_a_deadline_there_is_none(self) -> None:
        async def remaining(request: bytes, context: Any) -> bytes:
            return repr(context.time_remaining()).encode()

        more = {"Remaining": ("unary_unary", remaining)}
        async with serving(more) as (address, _), channel_to(address) as channel:
            assert await channel.unary_unary(path("Remaining"))(b"") == b"None"

    @pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
    async def test_a_cancellation_reaches_the_handler(self, kind: str) -> None:
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[Any] = loop.create_future()
        ended: asyncio.Future[bool] = loop.create_future()

        async def work(context: Any) -> None:
            begun.set_result(context)
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                ended.set_result(context.cancelled())
                raise

        async def unary(request: Any, context: Any) -> bytes:
            await work(context)
            return b""

        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            await work(context)
            yield b""

        function = stream if kind.endswith("stream") else unary
        async with serving({"Work": (kind, function)}) as (address, server), channel_to(address) as channel:
            method = getattr(channel, kind)(path("Work"))
            call = method(b"") if kind.startswith("unary") else method()
            context = await asyncio.wait_for(begun, 5)
            assert not context.cancelled()
            call.cancel()
            assert await asyncio.wait_for(ended, 5) is True
            assert context.done()
            assert server.calls == 0

    async def test_a_lost_connection_cancels_too(self) -> None:
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[bool] = loop.create_future()

        async def work(request: bytes, context: Any) -> bytes:
            begun.set_result(None)
            try:
                await loop.create_future()
            finally:
                ended.set_result(context.cancelled())
            return b""

        async with serving({"Work": ("unary_unary", work)}) as (address, server):
            async with channel_to(address) as channel:
                call = channel.unary_unary(path("Work"))(b"")
                await asyncio.wait_for(begun, 5)
                await channel.close(None)
                with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                    await call
            assert await asyncio.wait_for(ended, 5) is True
            assert server.calls == 0


class TestInterceptors:
    async def test_in_order_and_for_all_kinds(self) -> None:
        seen: list[str] = []

        class Tag(grpc.aio.ServerInterceptor):
            def __init__(self, name: str) -> None:
                self.name = name

            async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
                seen.append(f"{self.name} {handler_call_details.method.rpartition('/')[2]}")
                metadata = dict(handler_call_details.invocation_metadata)
                if metadata.get("stop") == self.name:
                    return grpc.unary_unary_rpc_method_handler(stopped)
                return await continuation(handler_call_details)

        async def stopped(request: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "stop")

        async with (
            serving(interceptors=[Tag("a"), Tag("b")]) as (address, server),
            channel_to(address) as channel,
        ):
            assert await channel.unary_unary(path("Echo"))(b"x") == b"x"
            assert await channel.unary_unary(path("Echo"))(bytes(1 << 20)) == bytes(1 << 20)
            assert [part async for part in channel.unary_stream(path("Count"))(b"3")] == [b"0", b"1", b"2"]
            assert await channel.stream_unary(path("Total"))(iter([b"x"] * 9)) == b"9"
            assert [part async for part in channel.stream_stream(path("Chat"))(iter([b"x", b"y"]))] == [b"x", b"y"]
            assert seen[:2] == ["a Echo", "b Echo"]
            seen.clear()
            error = await failure(channel.unary_unary(path("Echo"))(b"x", metadata=(("stop", "a"),)))
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            assert seen == ["a Echo"]
            error = await failure(channel.unary_unary("/no/Method")(b"x"))
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
            assert server.calls == 0

    async def test_something_else_is_refused(self) -> None:
        with pytest.raises(ValueError, match="ServerInterceptor"):
            async with serving(interceptors=[object()]):
                pass


class TestCompression:
    @pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
    async def test_both_ways(self, algorithm: grpc.Compression) -> None:
        async def packed(request: bytes, context: Any) -> bytes:
            context.set_compression(algorithm)
            return request

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            context.set_compression(algorithm)
            yield request
            context.disable_next_message_compression()
            yield request

        more = {"Packed": ("unary_unary", packed), "Stream": ("unary_stream", stream)}
        text = b"compressible " * 10_000
        async with serving(more) as (address, _), channel_to(address, compression=algorithm) as channel:
            for method in ("Packed", "Echo"):
                assert await channel.unary_unary(path(method))(text) == text
            assert [part async for part in channel.unary_stream(path("Stream"))(text)] == [text, text]
            assert await channel.stream_unary(path("Total"))(iter([text] * 3)) == b"%d" % (3 * len(text))

    async def test_a_bomb(self) -> None:
        options = [("grpc.max_receive_message_length", 1 << 20)]
        async with (
            serving(options=options) as (address, _),
            channel_to(address, compression=grpc.Compression.Gzip) as channel,
        ):
            for method, kind in (("Echo", "unary_unary"), ("EchoLater", "unary_unary"), ("Total", "stream_unary")):
                bomb = bytes(2 << 20)
                call = getattr(channel, kind)(path(method))(iter([bomb]) if kind == "stream_unary" else bomb)
                assert (await failure(call)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_peer_and_identity() -> None:
    async def who(request: bytes, context: Any) -> bytes:
        assert context.peer_identities() is None
        assert context.peer_identity_key() is None
        assert context.auth_context() == {}
        return str(context.peer()).encode()

    async with serving({"Who": ("unary_unary", who)}) as (address, _), channel_to(address) as channel:
        assert (await channel.unary_unary(path("Who"))(b"")).startswith(b"ipv4:127.0.0.1:")


async def test_more_calls_than_may_be() -> None:
    loop = asyncio.get_running_loop()
    release: asyncio.Future[None] = loop.create_future()

    async def wait(request: bytes, context: Any) -> bytes:
        await asyncio.shield(release)
        return b""

    more = {"Wait": ("unary_unary", wait)}
    async with (
        serving(more, maximum_concurrent_rpcs=3) as (address, server),
        channel_to(address) as channel,
    ):
        method = channel.unary_unary(path("Wait"))
        codes = [asyncio.ensure_future(method(b"").code()) for _ in range(4)]
        done, rest = await asyncio.wait(codes, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert [code.result() for code in done] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert server.calls == 3
        release.set_result(None)
        assert {await code for code in rest} == {grpc.StatusCode.OK}
        assert await channel.unary_unary(path("Echo"))(b"again") == b"again"

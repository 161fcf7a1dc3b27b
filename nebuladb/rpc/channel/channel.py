"""`Channel`: grpc.aio's channel, over HTTP/2 of our own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from nebuladb.rpc.channel.dispatcher import Dispatcher
from nebuladb.rpc.channel.method import Method, base_fields
from nebuladb.rpc.channel.multicallable import (
    Compression,
    StreamStream,
    StreamUnary,
    UnaryStream,
    UnaryUnary,
    encoding_of,
)
from nebuladb.rpc.channel.settings import Options, Settings
from nebuladb.rpc.channel.target import parse
from nebuladb.rpc.compression import compressor
from nebuladb.rpc.http2 import Limits
from nebuladb.rpc.http2.frames import MAX_WINDOW
from nebuladb.rpc.tls import ChannelCredentials

Serializer = Callable[[Any], bytes] | None
Deserializer = Callable[[bytes], Any] | None

LIMITS: Final = Limits(connection_window=MAX_WINDOW)
"""Of a connection. What an application leaves unread is bounded stream by stream: a window that all of them share would
be used up by a few watches whose readers are busy, and hold every other call to the server."""
KINDS: Final = (
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamUnaryClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
)


class Channel(grpc.aio.Channel):
    """A target, and the connections to it. Belongs to the loop in which it was made, and to its thread.

    It connects when it is used first. One that nobody holds any more closes; methods and calls hold it.
    """

    def __init__(
        self,
        target: str,
        options: Options | None,
        credentials: ChannelCredentials | None,
        compression: Compression | None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None,
        limits: Limits | None,
    ) -> None:
        """Raises `ValueError` for an argument that makes no sense, `RuntimeError` outside of a loop."""
        if credentials is not None and not isinstance(credentials, ChannelCredentials):
            raise ValueError("credentials must be of nebuladb.rpc.ssl_channel_credentials: grpc's own can't be opened")
        where = parse(target)
        settings = Settings.of(options)
        self._interceptors: dict[type, list[Any]] = {kind: [] for kind in KINDS}
        for interceptor in interceptors or ():
            kinds = [kind for kind in KINDS if isinstance(interceptor, kind)]
            if not kinds:
                raise ValueError(f"{interceptor!r} is no client interceptor of grpc.aio")
            # The first of its kinds, as in grpc.aio.
            self._interceptors[kinds[0]].append(interceptor)
        self._encoding = encoding_of(compression)
        if self._encoding:
            compressor(self._encoding)
        limits = replace(limits or LIMITS, header_list=settings.max_metadata)
        tls = None if credentials is None else (credentials, settings.server_name or where.host)
        authority = settings.authority or where.authority
        self._base = base_fields("http" if credentials is None else "https", authority, settings.user_agent)
        self._core = Dispatcher(asyncio.get_running_loop(), where, settings, limits, tls)

    # --- methods ---------------------------------------------------------------------------------------------------

    def _method(self, method: str | bytes, serializer: Serializer, deserializer: Deserializer) -> Method:
        path = method.decode() if isinstance(method, bytes) else method
        return Method(path, self._base, serializer, deserializer, self)

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary[Any, Any]:
        """A method, "/package.Service/Method", with one message each way. Without serializers messages are bytes."""
        known = self._method(method, request_serializer, response_deserializer)
        return UnaryUnary(self._core, known, self._interceptors[KINDS[0]], self._encoding)

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream[Any, Any]:
        """A method with one message, and an answer of many."""
        known = self._method(method, request_serializer, response_deserializer)
        return UnaryStream(self._core, known, self._interceptors[KINDS[1]], self._encoding)

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary[Any, Any]:
        """A method with many messages, and one answer."""
        known = self._method(method, request_serializer, response_deserializer)
        return StreamUnary(self._core, known, self._interceptors[KINDS[2]], self._encoding)

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> StreamStream[Any, Any]:
        """A method with many messages both ways."""
        known = self._method(method, request_serializer, response_deserializer)
        return StreamStream(self._core, known, self._interceptors[KINDS[3]], self._encoding)

    # --- connectivity ----------------------------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state now; `try_to_connect`: and leave it, if it is IDLE."""
        state = self._core.state
        if try_to_connect and state is grpc.ChannelConnectivity.IDLE:
            self._core.connect()
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Until the state is another one."""
        await self._core.state_other_than(last_observed_state)

    async def channel_ready(self) -> None:
        """Until it is READY. Raises `UsageError` if it is closed before."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise grpc.aio.UsageError("Channel is closed.")
            await self.wait_for_state_change(state)

    # --- the end ---------------------------------------------------------------------------------------------------

    async def close(self, grace: float | None = None) -> None:
        """No new calls; those that run have `grace` seconds, and are cancelled then."""
        if grace is not None and grace < 0:
            raise ValueError(f"grace must not be negative: {grace}")
        await self._core.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._core.close(None)

    def __del__(self) -> None:
        core: Dispatcher | None = self.__dict__.get("_core")
        if core is not None and not core.closing:
            # The collector runs in any thread, and in the midst of anything.
            with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
                core.loop.call_soon_threadsafe(core.shut)

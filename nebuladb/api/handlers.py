"""How a service's methods become gRPC handlers: counted, asked again after a lag, refused with a status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from nebuladb.api import status
from nebuladb.api.backend import Backend
from nebuladb.errors import NebulaError

Unary = Callable[[bytes, Any], Awaitable[bytes]]
Stream = Callable[[bytes, Any], AsyncIterator[bytes]]
Dialogue = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]
"""Both sides stream."""
Translate = Callable[[NebulaError], NebulaError]


class Meter(Protocol):
    """What calls are counted by (``server.metrics``)."""

    def rpc(self, method: str, code: str, seconds: float) -> None: ...


def unchanged(error: NebulaError) -> NebulaError:
    """The `Translate` of services that speak our own language."""
    return error


class Handlers:
    """Makes the handlers of services whose methods take a request's bytes and give a response's."""

    def __init__(self, backend: Backend, meter: Meter) -> None:
        self._backend = backend
        self._meter = meter

    def of(
        self, service: Any, descriptor: ServiceDescriptor, translate: Translate = unchanged
    ) -> grpc.GenericRpcHandler:
        """All methods that `descriptor` names, under its name. `translate` words the refusals."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in descriptor.methods:
            path = f"/{descriptor.full_name}/{method.name}"
            function = getattr(service, method.name, None)
            if function is None:
                continue  # answered UNIMPLEMENTED
            if method.client_streaming:
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._dialogue(path, function, translate))
            elif method.server_streaming:
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(self._stream(path, function, translate))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._unary(path, function, translate))
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _unary(self, path: str, function: Unary, translate: Translate) -> Unary:
        async def call(raw: bytes, context: Any) -> bytes:
            begun, code = time.perf_counter(), "INTERNAL"
            meta = self._backend.meta
            try:
                try:
                    response = await function(raw, context)
                except NebulaError as error:
                    # Refused before anything was done, or at apply, which changes nothing either.
                    if not await self._backend.learned(error, meta, context):
                        raise
                    response = await function(raw, context)
                code = "OK"
                return response
            except NebulaError as error:
                code = await self._abort(context, error, translate)
                raise
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    def _stream(self, path: str, function: Stream, translate: Translate) -> Stream:
        async def call(raw: bytes, context: Any) -> AsyncIterator[bytes]:
            begun, code = time.perf_counter(), "INTERNAL"
            meta, silent = self._backend.meta, True
            try:
                try:
                    async for response in function(raw, context):
                        silent = False
                        yield response
                except NebulaError as error:
                    if not (silent and await self._backend.learned(error, meta, context)):
                        raise
                    async for response in function(raw, context):
                        yield response
                code = "OK"
            except NebulaError as error:
                code = await self._abort(context, error, translate)
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    def _dialogue(self, path: str, function: Dialogue, translate: Translate) -> Dialogue:
        async def call(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            begun, code = time.perf_counter(), "INTERNAL"
            try:
                async for response in function(requests, context):
                    yield response
                code = "OK"
            except NebulaError as error:
                # What was read of `requests` is gone, so nothing is asked again: such a handler asks again itself.
                code = await self._abort(context, error, translate)
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    async def _abort(self, context: Any, error: NebulaError, translate: Translate) -> str:
        """End the call; the code is for the books, should `abort` ever return."""
        backend = self._backend
        backend.pump.met(error)
        worded = translate(error)
        shard = backend.descriptor(error.group)
        detail = status.detail(worded, backend.meta, backend.leader(error.group), shard)
        await status.abort(context, worded, detail)
        return worded.code

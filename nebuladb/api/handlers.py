"""How a service's methods become gRPC handlers: counted, asked again after a lag, refused with a status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from nebuladb.api import status
from nebuladb.api.backend import Backend
from nebuladb.errors import NebulaError, StoreClosed, StoreError, TooManyRequests, Unavailable

MAX_ORDINARY: Final = 20_000
"""Calls in progress, streams included, but for control's: a flood of them leaves those their room in the transport's
bound. Each costs some kilobytes."""
COPIES: Final = 3
"""Of the request of a stream while it is answered: its bytes, the message, and the keys that are read or watched."""
UNEXPECTED: Final = "INTERNAL"
"""By which a call is counted that ends by an error of ours. Its client is told UNKNOWN; but so is one whose lock is
refused, as by etcd, and of that nobody need be alarmed."""
CONTROL_SERVICES: Final = frozenset(
    {"nebula.v1.Cluster", "nebula.v1.Session", "etcdserverpb.Cluster", "etcdserverpb.Maintenance"}
)
CONTROL_METHODS: Final = frozenset(
    {"KeepAlive", "Revoke", "LeaseKeepAlive", "LeaseRevoke", "Unlock", "Resign", "Compact"}
)
"""What must get through on a node that has too much to do, or things get worse: leases would end under clients that
live, all who wait for a lock would keep out the one that unlocks it, and nobody could look at the node, or take it
out."""

Unary = Callable[[bytes, Any], Awaitable[bytes]]
Stream = Callable[[Any, Any], AsyncIterator[bytes]]
"""Of a request's bytes, or, where both sides stream, of an iterator of requests'."""
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
        self._ordinary = 0
        """Calls in progress that aren't control's."""

    def of(
        self, service: Any, descriptor: ServiceDescriptor, translate: Translate = unchanged
    ) -> grpc.GenericRpcHandler:
        """All methods that `descriptor` names, under its name. `translate` words the refusals."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in descriptor.methods:
            path = f"/{descriptor.full_name}/{method.name}"
            function = getattr(service, method.name)
            control = descriptor.full_name in CONTROL_SERVICES or method.name in CONTROL_METHODS
            weight = 0 if control else 1
            if method.client_streaming:
                # What was read of the requests is gone, so nothing is asked again: such a method asks again itself.
                dialogue = self._stream(path, function, translate, weight, again=False)
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(dialogue)
            elif method.server_streaming:
                stream = self._stream(path, function, translate, weight, again=True)
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(stream)
            else:
                unary = self._unary(path, function, translate, weight)
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(unary)
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _unary(self, path: str, function: Unary, translate: Translate, weight: int) -> Unary:
        async def call(raw: bytes, context: Any) -> bytes:
            begun, code = time.perf_counter(), UNEXPECTED
            meta = self._backend.node.meta
            self._ordinary += weight
            try:
                if weight and self._ordinary > MAX_ORDINARY:
                    raise _full()
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
                worded = self._worded(error, translate)
                code = worded.code
                await self._abort(context, worded, error)
                raise
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                self._ordinary -= weight
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    def _stream(self, path: str, function: Stream, translate: Translate, weight: int, *, again: bool) -> Stream:
        async def call(asked: Any, context: Any) -> AsyncIterator[bytes]:
            begun, code = time.perf_counter(), UNEXPECTED
            meta, silent, held = self._backend.meta, True, 0
            self._ordinary += weight
            try:
                if weight and self._ordinary > MAX_ORDINARY:
                    raise _full()
                if again:
                    held = self._backend.asked.take(COPIES * len(asked))
                try:
                    async for response in function(asked, context):
                        silent = False
                        yield response
                        del response  # the next one may be long in coming
                except NebulaError as error:
                    if not (again and silent and await self._backend.learned(error, meta, context)):
                        raise
                    async for response in function(asked, context):
                        yield response
                        del response
                code = "OK"
            except NebulaError as error:
                worded = self._worded(error, translate)
                code = worded.code
                await self._abort(context, worded, error)
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                self._ordinary -= weight
                self._backend.asked.give(held)
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    def _worded(self, error: NebulaError, translate: Translate) -> NebulaError:
        """What the client is told of `error`; the pump hears of it, too."""
        self._backend.pump.request_failed(error)
        if type(error) in (StoreError, StoreClosed):  # of a read, and this node's alone: its writes' end the node
            error = Unavailable(f"this node can't read its data store: {error.message}; ask another node")
        return translate(error)

    async def _abort(self, context: Any, worded: NebulaError, error: NebulaError) -> None:
        """End the call with `worded`, in the words for clients, for `error`, with whose group's leader and descriptor.
        Does not return."""
        backend, group = self._backend, error.group
        try:
            detail = status.detail(worded, backend.meta, backend.leader(group), backend.descriptor(group))
            await status.abort(context, worded, detail)
        finally:
            # The call's frame, with the request, and those of who set a future by it have the error.
            error.__traceback__ = None


def _full() -> NebulaError:
    return TooManyRequests(f"this node has {MAX_ORDINARY} calls in progress; back off and try again")

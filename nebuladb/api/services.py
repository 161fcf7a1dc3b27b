"""All services on one gRPC server, with health and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nebuladb.api import status
from nebuladb.api.backend import Backend
from nebuladb.api.cluster import ClusterService
from nebuladb.api.keyspace import KeyspaceService
from nebuladb.api.kv import KVService
from nebuladb.api.lease import LeaseService, SessionService
from nebuladb.errors import ConfigurationError, NebulaError
from nebuladb.pb.nebula.v1 import cluster_pb2, keyspace_pb2, kv_pb2, lease_pb2, session_pb2
from nebuladb.rpc import engine as engines
from nebuladb.rpc.engine import Engine

MAX_MESSAGE_BYTES: Final = 4 << 20
"""The transport's cap; a request is at most 1.5 MiB, and between the two the refusal says so."""
MAX_METADATA_BYTES: Final = 16 << 10
MAX_CALLS: Final = 10_000
"""Calls in progress, streams included; more are refused with RESOURCE_EXHAUSTED."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
)
_DESCRIPTORS: Final = {
    service.full_name: service
    for module in (kv_pb2, lease_pb2, session_pb2, keyspace_pb2, cluster_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}

Unary = Callable[[bytes, Any], Awaitable[bytes]]
Stream = Callable[[bytes, Any], AsyncIterator[bytes]]


class Meter(Protocol):
    """What calls are counted by (``server.metrics``)."""

    def rpc(self, method: str, code: str, seconds: float) -> None: ...


class ApiServer:
    """The client port of one node."""

    def __init__(
        self,
        backend: Backend,
        meter: Meter,
        client_address: str,
        peer_address: str,
        engine: Engine = engines.DEFAULT,
    ) -> None:
        self._backend = backend
        self._meter = meter
        self._server = engine.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        self._health = health.aio.HealthServicer()
        services: list[Any] = [
            KVService(backend),
            LeaseService(backend),
            SessionService(backend),
            KeyspaceService(backend),
            ClusterService(backend, client_address, peer_address),
        ]
        for service in services:
            self._server.add_generic_rpc_handlers((self._handlers(service, _DESCRIPTORS[service.name]),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_DESCRIPTORS, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> None:
        """Listen at HOST:PORT. Raises `ConfigurationError` if that can't be had."""
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(
                f"client-addr: can't listen at {address}: it is in use, or not this machine's"
            ) from error
        await self._server.start()
        await self.serving(now=True)

    async def serving(self, *, now: bool) -> None:
        """What health checks are told."""
        serving = health_pb2.HealthCheckResponse.SERVING if now else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *_DESCRIPTORS):
            await self._health.set(name, serving)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, and give those in progress `grace` seconds."""
        await self._server.stop(grace)

    def _handlers(self, service: Any, descriptor: ServiceDescriptor) -> grpc.GenericRpcHandler:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in descriptor.methods:
            path = f"/{service.name}/{method.name}"
            function = getattr(service, method.name)
            if method.server_streaming:
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(self._stream(path, function))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._unary(path, function))
        return grpc.method_handlers_generic_handler(service.name, handlers)

    def _unary(self, path: str, function: Unary) -> Unary:
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
                code = error.code
                await self._abort(context, error)
                raise
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    def _stream(self, path: str, function: Stream) -> Stream:
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
                code = error.code
                await self._abort(context, error)
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                self._meter.rpc(path, code, time.perf_counter() - begun)

        return call

    async def _abort(self, context: Any, error: NebulaError) -> None:
        backend = self._backend
        backend.pump.met(error)
        shard = backend.descriptor(error.group)
        detail = status.detail(error, backend.meta, backend.leader(error.group), shard)
        await status.abort(context, error, detail)

"""All services on one gRPC server, with health and reflection."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nebuladb.api.backend import Backend
from nebuladb.api.cluster import ClusterService
from nebuladb.api.etcd import events, ranges
from nebuladb.api.etcd.alarms import kinds
from nebuladb.api.etcd.errors import translate
from nebuladb.api.etcd.face import PROGRESS_SECONDS, Face
from nebuladb.api.etcd.gateway import Gateway
from nebuladb.api.etcd.gateway.pages import Pages
from nebuladb.api.etcd.services import etcd_services
from nebuladb.api.handlers import MAX_ORDINARY, Handlers, Meter
from nebuladb.api.health import Health
from nebuladb.api.keyspace import KeyspaceService
from nebuladb.api.kv import KVService
from nebuladb.api.lease import LeaseService
from nebuladb.api.session import SessionService
from nebuladb.errors import ConfigurationError
from nebuladb.pb.nebula.v1 import cluster_pb2, keyspace_pb2, kv_pb2, lease_pb2, session_pb2
from nebuladb.rpc import engine as engines
from nebuladb.rpc.engine import Engine
from nebuladb.rpc.serving import Server
from nebuladb.rpc.serving.ports import why_not

MAX_MESSAGE_BYTES: Final = 4 << 20
"""The transport's cap; a request is at most 1.5 MiB, and between the two the refusal says so."""
MAX_RESPONSE_BYTES: Final = max(events.MAX_MESSAGE_BYTES, ranges.MAX_RANGE_BYTES) + (64 << 10)
"""A revision that an etcd watch is told in one message, or a range that is answered whole, with its frame."""
MAX_METADATA_BYTES: Final = 16 << 10
MAX_CALLS: Final = MAX_ORDINARY + 2_000
"""Calls in progress, streams included; more are refused with RESOURCE_EXHAUSTED. What is beyond the ordinary ones is
control's (``handlers``)."""
DESCRIPTORS_LEFT: Final = 1_024 + 256
"""The two databases take up to 1,024 files, and the node some: documents, its ports, peers (``rpc.peer``), threads."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    # As many as there may be calls. One more is refused, and says so; past the streams it would wait in its client for
    # ever, as an Unlock would behind all that wait for the lock.
    ("grpc.max_concurrent_streams", MAX_CALLS),
    ("grpc.so_reuseport", 0),
    ("nebula.descriptors_left", DESCRIPTORS_LEFT),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # grpcio's own minute would rule
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
)
_DESCRIPTORS: Final = {
    service.full_name: service
    for module in (kv_pb2, lease_pb2, session_pb2, keyspace_pb2, cluster_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


class ApiServer:
    """The client port of one node."""

    def __init__(
        self,
        backend: Backend,
        meter: Meter,
        client_address: str,
        peer_address: str,
        engine: Engine = engines.DEFAULT,
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> None:
        """`progress_seconds`: how often etcd's watches that want it are told how far they have come."""
        self.face = face = Face(backend, progress_seconds)
        self._gateway = Gateway(Pages(face, lambda: kinds(backend)))
        # grpcio keeps its connections to itself: with it there is no gateway.
        beside: dict[str, Any] = {"http1": self._gateway} if engine.name == engines.NEBULA else {}
        self._server = engine.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS, **beside)
        if isinstance(self._server, Server):
            backend.pump.answers = self._server
        self._health = Health()
        services: list[Any] = [
            KVService(backend),
            LeaseService(backend),
            SessionService(backend),
            KeyspaceService(backend),
            ClusterService(backend, client_address, peer_address),
        ]
        handlers = Handlers(backend, meter)
        made = [handlers.of(service, _DESCRIPTORS[service.name]) for service in services]
        services_of_face = etcd_services(face, client_address, peer_address)
        for service, descriptor in services_of_face:
            made.append(handlers.of(service, descriptor, translate))
            self._gateway.serve(made[-1], descriptor)
        self._server.add_generic_rpc_handlers(made)
        self._names = (*_DESCRIPTORS, *(descriptor.full_name for _, descriptor in services_of_face))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> None:
        """Listen at HOST:PORT. Raises `ConfigurationError` if that can't be had."""
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(f"client-addr: can't listen at {address}: {why_not(error)}") from error
        await self._server.start()
        await self.serving(now=True)

    async def serving(self, *, now: bool) -> None:
        """What health checks are told."""
        serving = health_pb2.HealthCheckResponse.SERVING if now else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, serving)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, and give those in progress `grace` seconds."""
        await asyncio.gather(self._server.stop(grace), self._gateway.stop(grace))

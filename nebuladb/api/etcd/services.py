"""The face's services, each with the descriptor whose methods it serves."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from nebuladb.api.etcd.auth import AuthService
from nebuladb.api.etcd.cluster import ClusterService
from nebuladb.api.etcd.election import ElectionService
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.kv import KVService
from nebuladb.api.etcd.learner import guarded
from nebuladb.api.etcd.lease import LeaseService
from nebuladb.api.etcd.lock import LockService
from nebuladb.api.etcd.maintenance import MaintenanceService
from nebuladb.api.etcd.watch import WatchService
from nebuladb.pb.etcd import (
    auth_pb2,
    cluster_pb2,
    election_pb2,
    kv_pb2,
    lease_pb2,
    lock_pb2,
    maintenance_pb2,
    watch_pb2,
)


def etcd_services(face: Face, client_address: str, peer_address: str) -> list[tuple[Any, ServiceDescriptor]]:
    """All of them; the addresses are this node's, as its clients and peers reach it."""
    services: list[tuple[Any, ServiceDescriptor]] = [
        (KVService(face), kv_pb2.DESCRIPTOR.services_by_name["KV"]),
        (WatchService(face), watch_pb2.DESCRIPTOR.services_by_name["Watch"]),
        (LeaseService(face), lease_pb2.DESCRIPTOR.services_by_name["Lease"]),
        (LockService(face), lock_pb2.DESCRIPTOR.services_by_name["Lock"]),
        (ElectionService(face), election_pb2.DESCRIPTOR.services_by_name["Election"]),
        (ClusterService(face), cluster_pb2.DESCRIPTOR.services_by_name["Cluster"]),
        (MaintenanceService(face), maintenance_pb2.DESCRIPTOR.services_by_name["Maintenance"]),
        (AuthService(face), auth_pb2.DESCRIPTOR.services_by_name["Auth"]),
    ]
    return [(guarded(face.backend, service, descriptor), descriptor) for service, descriptor in services]

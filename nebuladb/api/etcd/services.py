"""The face's services, each with the descriptor whose methods it serves."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.kv import KVService
from nebuladb.api.etcd.lease import LeaseService
from nebuladb.api.etcd.watch import WatchService
from nebuladb.pb.etcd import kv_pb2, lease_pb2, watch_pb2


def etcd_services(face: Face, client_address: str, peer_address: str) -> list[tuple[Any, ServiceDescriptor]]:
    """All of them; the addresses are this node's, as its clients and peers reach it."""
    return [
        (KVService(face), kv_pb2.DESCRIPTOR.services_by_name["KV"]),
        (WatchService(face), watch_pb2.DESCRIPTOR.services_by_name["Watch"]),
        (LeaseService(face), lease_pb2.DESCRIPTOR.services_by_name["Lease"]),
    ]

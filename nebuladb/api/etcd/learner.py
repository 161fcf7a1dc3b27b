"""What a node that only learns answers: Status, serializable Range and Snapshot, as in etcd (etcd 52)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor

from nebuladb.api.backend import Backend
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.requests import received
from nebuladb.pb.etcd import kv_pb2

_FREE: Final = frozenset(("etcdserverpb.Maintenance/Status", "etcdserverpb.Maintenance/Snapshot"))
_RANGE: Final = "etcdserverpb.KV/Range"


def guarded(backend: Backend, service: Any, descriptor: ServiceDescriptor) -> Any:
    """`service`, but that a learner refuses most of its methods."""
    methods: dict[str, Any] = {}
    for method in descriptor.methods:
        function = getattr(service, method.name, None)
        name = f"{descriptor.full_name}/{method.name}"
        if function is not None:
            methods[method.name] = function if name in _FREE else _guard(backend, function, name)
    return SimpleNamespace(**methods)


def _guard(backend: Backend, function: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
    node, me = backend.node, backend.id

    def call(request: Any, context: Any) -> Any:
        # Not a coroutine itself: who isn't a learner pays for one look and no more.
        if me in node.meta.learners and not (name == _RANGE and received(kv_pb2.RangeRequest, request).serializable):
            raise EtcdError("UNAVAILABLE", "etcdserver: rpc not supported for learner")
        return function(request, context)

    return call

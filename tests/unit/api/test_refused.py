"""A call that is refused leaves nothing to the collector.

An error has the frames of the call that it ended, and these the request, as it came and as it was proposed, of 1.5 MiB
each. Who keeps it in one of these frames makes a cycle, which is freed some minutes later: a thousand refused writes,
as each flood has, were some GiB.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from nebuladb.errors import NebulaError, TooManyRequests
from nebuladb.node.proposals import Proposals
from nebuladb.pb.etcd import kv_pb2 as etcd_kv
from nebuladb.pb.etcd import lease_pb2 as etcd_lease
from nebuladb.pb.etcd import lock_pb2
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS

NOBODY = "nobody made it"
LATER = 1 << 40
"""A revision that is yet to come."""
AHEAD = kv_pb2.Operation(range=kv_pb2.RangeRequest(key=b"a", range_end=b"b", revision=LATER))
UNARY: dict[str, tuple[str, Message]] = {
    "no such keyspace": ("nebula.v1.KV/Put", kv_pb2.PutRequest(keyspace=NOBODY, key=b"k")),
    "no key": ("nebula.v1.KV/Put", kv_pb2.PutRequest()),
    "at apply": ("nebula.v1.KV/Put", kv_pb2.PutRequest(key=b"k", lease=99)),
    "no such revision": ("nebula.v1.KV/Get", kv_pb2.GetRequest(key=b"k", revision=LATER)),
    "no such revision of a range": ("nebula.v1.KV/Txn", kv_pb2.TxnRequest(success=[AHEAD])),
    "no such lease": ("nebula.v1.Lease/Revoke", lease_pb2.LeaseRevokeRequest(id=99)),
    "etcd: no key": ("etcdserverpb.KV/Put", etcd_kv.PutRequest()),
    "etcd: at apply": ("etcdserverpb.KV/Put", etcd_kv.PutRequest(key=b"k", lease=99)),
    "etcd: no such revision": ("etcdserverpb.KV/Range", etcd_kv.RangeRequest(key=b"k", revision=LATER)),
    "etcd: of a range": ("etcdserverpb.KV/Range", etcd_kv.RangeRequest(key=b"a", range_end=b"b", revision=LATER)),
    "etcd: compacted": ("etcdserverpb.KV/Compact", etcd_kv.CompactionRequest(revision=LATER)),
    "etcd: no such lease": ("etcdserverpb.Lease/LeaseRevoke", etcd_lease.LeaseRevokeRequest(ID=99)),
    "etcd: no such owner": ("v3lockpb.Lock/Lock", lock_pb2.LockRequest(name=b"n", lease=99)),
}
STREAMS: dict[str, tuple[str, Message]] = {
    "a scan": ("nebula.v1.KV/Scan", kv_pb2.ScanRequest(keyspace=NOBODY)),
    "a scan of no revision": ("nebula.v1.KV/Scan", kv_pb2.ScanRequest(range_end=b"\0", revision=LATER)),
    "a watch": ("nebula.v1.KV/Watch", kv_pb2.WatchRequest(keyspace=NOBODY, key=b"k")),
    "etcd: a range in parts": (
        "etcdserverpb.KV/RangeStream", etcd_kv.RangeRequest(key=b"a", range_end=b"b", revision=LATER)
    ),
}  # fmt: skip


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[NebulaError]]]:
    """All that are made, as long as somebody has them, and the collector does nothing."""
    made: list[weakref.ref[NebulaError]] = []
    make = NebulaError.__init__

    def remembered(error: NebulaError, message: str = "") -> None:
        make(error, message)
        made.append(weakref.ref(error))

    monkeypatch.setattr(NebulaError, "__init__", remembered)
    gc.disable()
    yield made
    gc.enable()


async def refused(served: Served, method: str, request: Message) -> None:
    ask: Any = served.channel.unary_unary(f"/{method}")
    await _refused(ask(request.SerializeToString()))


async def _refused(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, SECONDS)
    assert caught.value.code() is not grpc.StatusCode.UNIMPLEMENTED


def left(errors: list[weakref.ref[NebulaError]]) -> list[str]:
    assert errors, "a refusal is an error of ours"
    return [repr(error) for reference in errors if (error := reference()) is not None]


@pytest.mark.parametrize("what", list(UNARY))
async def test_a_refused_call_is_let_go(served: Served, errors: list[weakref.ref[NebulaError]], what: str) -> None:
    method, request = UNARY[what]
    await refused(served, method, request)
    assert left(errors) == []


@pytest.mark.parametrize("what", list(STREAMS))
async def test_a_refused_stream_is_let_go(served: Served, errors: list[weakref.ref[NebulaError]], what: str) -> None:
    method, request = STREAMS[what]
    ask: Any = served.channel.unary_stream(f"/{method}")
    await _refused(ask(request.SerializeToString()).read())
    assert left(errors) == []


@pytest.mark.parametrize("method", ["nebula.v1.KV/Put", "etcdserverpb.KV/Put"])
async def test_a_write_for_which_there_is_no_room_is_let_go(
    served: Served, errors: list[weakref.ref[NebulaError]], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(proposals: Proposals, size: int) -> None:
        raise TooManyRequests

    monkeypatch.setattr(Proposals, "_check", full)
    put = kv_pb2.PutRequest if method.startswith("nebula") else etcd_kv.PutRequest
    await refused(served, method, put(key=b"k", value=bytes(1 << 20)))
    assert left(errors) == []


async def test_a_write_that_nobody_took_in_time_is_let_go(
    served: Served, errors: list[weakref.ref[NebulaError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expire = Proposals.expire
    monkeypatch.setattr(Proposals, "take", lambda *_, **__: [])
    monkeypatch.setattr(Proposals, "expire", lambda proposals, now, **_: expire(proposals, 1 << 60))
    await refused(served, "nebula.v1.KV/Put", kv_pb2.PutRequest(key=b"k"))
    assert left(errors) == []

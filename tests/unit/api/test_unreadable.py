"""A client that asks a node whose disk fails reads is sent to another node."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from nebuladb.errors import Outcome, Reason, StoreClosed, StoreError
from nebuladb.kv.store import Store
from nebuladb.node.alarms import AlarmKind
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.served import Served, error_detail

TEXT = "IO error: While pread offset 1 len 4096: /data/000012.sst: Input/output error"


@pytest.mark.parametrize(
    ("met", "alarmed"),
    [(StoreError(TEXT), True), (StoreClosed("the snapshot is closed"), False)],
    ids=["disk", "closed"],
)
async def test_a_read_that_fails_here_may_be_tried_elsewhere(
    served: Served, monkeypatch: pytest.MonkeyPatch, met: StoreError, alarmed: bool
) -> None:
    def fail(group: int) -> Store:
        raise met

    monkeypatch.setattr(served.pump, "store", fail)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.get(kv_pb2.GetRequest(key=b"k"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == f"this node can't read its data store: {met.message}; ask another node"
    detail = error_detail(caught.value)
    assert (detail.retryable, detail.reason) == (True, Reason.UNAVAILABLE)
    assert Outcome(detail.outcome) is Outcome.FAILED
    assert served.node.alarms_now.stands(AlarmKind.UNREADABLE) is alarmed
    monkeypatch.undo()
    assert (await served.get(kv_pb2.GetRequest(key=b"k"))).kv.value == b"v"

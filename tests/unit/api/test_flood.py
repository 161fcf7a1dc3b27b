"""A client that floods a node with puts: control's calls get through (leases live, the node can be looked at)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.api import handlers
from nebuladb.client import AsyncClient
from nebuladb.kv.command import Kind
from nebuladb.node.pump import Pump
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from nebuladb.rpc.engine import ENGINES
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS

MOST = 8
FLOOD = 50


@pytest.fixture(params=list(ENGINES))
async def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Its puts are never decided."""
    monkeypatch.setattr(handlers, "MAX_ORDINARY", MOST)
    served = Served()
    await asyncio.wait_for(served.open(ENGINES[request.param]), SECONDS)
    propose = Pump.propose

    def slow(pump: Pump, group: int, command: Any, timeout: float) -> Any:
        if command.kind == Kind.PUT:
            return asyncio.get_running_loop().create_future()
        return propose(pump, group, command, timeout)

    monkeypatch.setattr(Pump, "propose", slow)
    yield served
    await served.close()


async def test_control_gets_through_a_flood_of_puts(served: Served) -> None:
    put = served.channel.unary_unary(
        "/nebula.v1.KV/Put", kv_pb2.PutRequest.SerializeToString, kv_pb2.PutResponse.FromString
    )

    def unary(method: str) -> Any:
        return served.channel.unary_unary(f"/nebula.v1.Lease/{method}")

    grant = unary("Grant")
    request = lease_pb2.LeaseGrantRequest(ttl=60).SerializeToString()
    lease = lease_pb2.LeaseGrantResponse.FromString(await grant(request, timeout=SECONDS)).id
    flood = [put(kv_pb2.PutRequest(key=b"k%d" % number), timeout=SECONDS) for number in range(FLOOD)]
    waiting = {asyncio.ensure_future(call.code()) for call in flood}
    refused = set[asyncio.Future[Any]]()
    async with asyncio.timeout(SECONDS):
        while len(refused) < FLOOD - MOST:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
    assert {code.result() for code in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(waiting) == MOST
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await grant(request, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with AsyncClient([served.address]) as client:
        answer = await unary("KeepAlive")(
            lease_pb2.LeaseKeepAliveRequest(id=lease).SerializeToString(), timeout=SECONDS
        )
        assert lease_pb2.LeaseKeepAliveResponse.FromString(answer).ttl > 0
        await unary("Revoke")(lease_pb2.LeaseRevokeRequest(id=lease).SerializeToString(), timeout=SECONDS)
        assert [member.name for member in await client.members()] == ["n1"]
        assert await client.add_member("n9", "127.0.0.1:9")
        await client.remove_member("n9")
    for call in flood:
        call.cancel()
    await asyncio.wait(waiting)
    assert lease_pb2.LeaseGrantResponse.FromString(await grant(request, timeout=SECONDS)).id, "there is room again"

"""The services on their real server, over one node in memory: what a read of damaged data says, and what clients leave
behind that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.api.backend import EARLIER
from nebuladb.api.services import OPTIONS, ApiServer
from nebuladb.errors import ConfigurationError
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.hashing import HashJob
from nebuladb.kv.store import Store
from nebuladb.pb.nebula.v1 import cluster_pb2, kv_pb2
from nebuladb.rpc.engine import ENGINES, NEBULA
from tests.unit.api.served import Meter, Served
from tests.unit.node.lone import SECONDS


@pytest.fixture(params=list(ENGINES))
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    served = Served()
    await asyncio.wait_for(served.open(ENGINES[request.param]), SECONDS)
    yield served
    await served.close()


async def test_damaged_data_is_never_served_and_is_an_alarm(served: Served) -> None:
    await served.put()
    for row in list(served.data._table.keys):
        served.data.flip(row, 0, detected=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.get(kv_pb2.GetRequest(key=b"k", revision=2))
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    [alarm] = served.node.alarms()
    assert "checksum" in alarm


async def test_who_waits_for_a_hash_in_vain_looks_for_it_more_and_more_seldom(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 that looked every 10 ms, for a hash at an index that doesn't come, left nobody else much of the loop."""
    looks: list[int] = []
    monkeypatch.setattr(Store, "hash_at", lambda store, index: looks.append(index))
    ask = served.channel.unary_unary(
        "/nebula.v1.Cluster/StateHash",
        cluster_pb2.StateHashRequest.SerializeToString,
        cluster_pb2.StateHashResponse.FromString,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(cluster_pb2.StateHashRequest(group=DEFAULT_GROUP, index=1 << 60), timeout=0.8)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 1 <= len(looks) <= 8
    assert set(looks) == {1 << 60}


async def test_a_hash_is_ordered_once_and_waited_for_as_often_as_it_takes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.put()
    ask = served.channel.unary_unary(
        "/nebula.v1.Cluster/StateHash",
        cluster_pb2.StateHashRequest.SerializeToString,
        cluster_pb2.StateHashResponse.FromString,
    )
    step = HashJob.step
    monkeypatch.setattr(HashJob, "step", lambda job, budget: None)
    order = await ask(cluster_pb2.StateHashRequest(group=DEFAULT_GROUP), timeout=SECONDS)
    store = served.pump.store(DEFAULT_GROUP)
    assert (order.index, order.hash) == (store.index, b""), "at once, though it takes long"
    wait = cluster_pb2.StateHashRequest(group=DEFAULT_GROUP, index=order.index)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(wait, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    monkeypatch.setattr(HashJob, "step", step)
    found = await ask(wait, timeout=SECONDS)
    assert (found.index, len(found.hash)) == (order.index, 16)
    assert store.index == order.index, "nothing was ordered meanwhile"
    wait.index -= 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(wait, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watches_whose_clients_went_away_are_forgotten(served: Served) -> None:
    """Idle ones, and ones that wait for a reader who is too slow."""
    hub = served.pump.hub(DEFAULT_GROUP)
    calls = [served.watch(kv_pb2.WatchRequest(key=b"k", start_revision=start)) for start in (0, 0, 2, 2)]
    for call in calls:
        assert (await call.read()).created
    assert len(hub) == 4
    big = kv_pb2.PutRequest(key=b"k", value=bytes(1 << 20)).SerializeToString()
    put: Any = served.channel.unary_unary("/nebula.v1.KV/Put")
    for _ in range(12):
        await put(big, timeout=SECONDS)
    for call in calls:
        call.cancel()
    await served.until(lambda: len(hub) == 0)


async def test_a_call_is_counted_by_the_code_that_its_client_sees(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that were refused were counted as INTERNAL. That is for errors of ours only."""

    def broken(keyspace: str, key: bytes, epoch: int) -> None:
        raise RuntimeError("an error of ours")

    raw = kv_pb2.GetRequest(keyspace="nobody made it", key=b"k").SerializeToString()
    get: Any = served.channel.unary_unary("/nebula.v1.KV/Get")
    scan: Any = served.channel.unary_stream("/nebula.v1.KV/Scan")
    seen = []
    calls: list[Callable[[], Awaitable[object]]] = [lambda: get(raw), lambda: scan(raw).read(), lambda: get(raw)]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call(), SECONDS)
        seen.append(caught.value.code().name)
        monkeypatch.setattr(served.backend, "route", broken)
    await served.until(lambda: len(served.meter.ended) == 3)
    assert seen == ["NOT_FOUND", "NOT_FOUND", "UNKNOWN"]
    assert served.meter.ended == [
        ("/nebula.v1.KV/Get", "NOT_FOUND"),
        ("/nebula.v1.KV/Scan", "NOT_FOUND"),
        ("/nebula.v1.KV/Get", "INTERNAL"),
    ]


async def test_a_long_name_in_a_refusal_does_not_break_the_call(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.get(kv_pb2.GetRequest(keyspace="x" * (1 << 20), key=b"k"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_write_is_given_up_before_its_callers_deadline(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    propose = served.pump.propose

    def spy(group: int, command: Any, timeout: float) -> Any:
        given.append(timeout)
        return propose(group, command, timeout)

    monkeypatch.setattr(served.pump, "propose", spy)
    put: Any = served.channel.unary_unary("/nebula.v1.KV/Put")
    await put(kv_pb2.PutRequest(key=b"k").SerializeToString(), timeout=SECONDS)
    # grpcio rounds a time-out of more than ten seconds up to the next tenth of one.
    assert SECONDS / 2 < given[0] <= SECONDS + 0.1 - EARLIER


@pytest.mark.parametrize("engine", list(ENGINES))
async def test_a_port_that_can_not_be_had_is_named_with_the_reason(served: Served, engine: str) -> None:
    second = ApiServer(served.backend, Meter(), served.address, "", ENGINES[engine])
    why = "Address already in use" if engine == NEBULA else "it is in use, or not this machine's"
    with pytest.raises(ConfigurationError, match=f"^client-addr: can't listen at {served.address}: {why}$"):
        await second.start(served.address)
    await second.stop(0)


def test_grpcio_is_told_as_well_how_long_a_ping_may_take() -> None:
    """It has two settings for it, of which the longer one rules: 60 s, if nobody says otherwise."""
    options = dict(OPTIONS)
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]

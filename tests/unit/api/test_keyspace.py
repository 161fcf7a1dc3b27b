"""Keyspaces that others drop while they are made."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nebuladb.api import cluster, pace
from nebuladb.api import keyspace as module
from nebuladb.api.drive import Due, drive, until
from nebuladb.client import AsyncClient
from nebuladb.errors import TooManyRequests, Unavailable, UnknownOutcome
from nebuladb.ids import DEFAULT_GROUP, META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.keyspaces import drop_step
from nebuladb.node.meta import Removal
from nebuladb.node.read_lease import ReadLease
from nebuladb.pb.nebula.v1 import cluster_pb2, keyspace_pb2
from nebuladb.shard import Role
from tests.unit.api.served import Served
from tests.unit.api.turns import turns_of_calls
from tests.unit.node.lone import SECONDS


async def test_who_creates_a_keyspace_that_is_dropped_meanwhile_is_told_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an INTERNAL error, a KeyError's; or it waited for leaders that there would never be."""
    request = keyspace_pb2.KeyspaceCreateRequest(name="k", partitioning=keyspace_pb2.HASH, shards=2)
    context = SimpleNamespace(time_remaining=lambda: SECONDS)
    async with AsyncClient([served.address], timeout=SECONDS) as other:

        async def drop(*args: Any) -> None:
            monkeypatch.setattr(module, "until", until)
            await other.drop_keyspace("k")
            await until(*args)

        monkeypatch.setattr(module, "until", drop)
        with pytest.raises(UnknownOutcome, match="somebody dropped it"):
            await module.KeyspaceService(served.backend).Create(request.SerializeToString(), context)


async def test_who_creates_a_keyspace_through_a_node_that_leaves_hears_that_it_is_there(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited to see leaders, and that node has no replica by which it would."""

    async def elsewhere(*args: Any) -> None:
        shards = served.node.meta.shards
        for shard in [shard for shard in shards.values() if shard.keyspace == "k"]:
            replicas = tuple((replica, 99) for replica, _ in shard.replicas)
            monkeypatch.setitem(shards, shard.group, shard._replace(replicas=replicas))
        monkeypatch.setattr(served.backend, "leader", lambda group: 0)
        await until(*args)

    monkeypatch.setattr(module, "until", elsewhere)
    request = keyspace_pb2.KeyspaceCreateRequest(name="k", partitioning=keyspace_pb2.SINGLE)
    context = SimpleNamespace(time_remaining=lambda: 1.0)
    raw = await module.KeyspaceService(served.backend).Create(request.SerializeToString(), context)
    assert keyspace_pb2.KeyspaceCreateResponse.FromString(raw).keyspace.name == "k"


async def test_who_drops_a_keyspace_waits_out_the_lease_by_which_it_may_be_read_elsewhere(served: Served) -> None:
    """A leader that was cut off, and hadn't heard of it, went on answering reads after the drop was acknowledged."""
    context = SimpleNamespace(time_remaining=lambda: SECONDS)
    time = asyncio.get_running_loop().time
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.create_keyspace("k", "single")
    served.node.host.replicas[META_GROUP].lease = ReadLease(400)
    for dropped in (True, False):
        request = keyspace_pb2.KeyspaceDropRequest(name="k")
        begun = time()
        raw = await module.KeyspaceService(served.backend).Drop(request.SerializeToString(), context)
        assert keyspace_pb2.KeyspaceDropResponse.FromString(raw).dropped is dropped
        assert time() - begun >= 0.5, "by the quickest clock; whoever dropped it may have done so just now"


@pytest.mark.parametrize("named", [True, False], ids=["by its shard", "by its name"])
async def test_who_repeats_a_drop_waits_as_well_until_nobody_can_read_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    """The record goes first, the replicas later: a repeat found no record, and said that all was done."""
    service, housekeeper = module.KeyspaceService(served.backend), served.node._housekeeper
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        made = await client.create_keyspace("k", "hash", shards=2)
    request = keyspace_pb2.KeyspaceDropRequest(name="k", group=made.shards[0].group if named else 0)
    with monkeypatch.context() as patched:
        patched.setattr(housekeeper, "acknowledge", lambda: None)  # its disk is slow
        await drive(served.backend, lambda meta: drop_step(meta, "k"), Due(SECONDS))
        assert "k" not in served.node.meta.keyspaces
        with pytest.raises(Unavailable, match="is being dropped" if named else "no keyspace 'k'; .* destroyed: repeat"):
            await service.Drop(request.SerializeToString(), SimpleNamespace(time_remaining=lambda: 0.3))
    housekeeper.acknowledge()
    context = SimpleNamespace(time_remaining=lambda: SECONDS)
    raw = await service.Drop(request.SerializeToString(), context)
    assert keyspace_pb2.KeyspaceDropResponse.FromString(raw).dropped is named
    assert not served.node.meta.removals


@pytest.mark.parametrize(
    ("service", "method", "request_of", "told"),
    [
        ("Keyspace", "List", keyspace_pb2.KeyspaceListRequest, (module, "descriptor_message")),
        ("Keyspace", "Describe", keyspace_pb2.KeyspaceDescribeRequest, (module, "descriptor_message")),
        ("Cluster", "Shards", cluster_pb2.ShardsRequest, (cluster, "descriptor_message")),
        ("Cluster", "Status", cluster_pb2.StatusRequest, (cluster, "group_statuses")),
    ],
)
async def test_those_who_ask_for_many_shards_do_not_share_a_turn(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    service: str,
    method: str,
    request_of: Any,
    told: tuple[ModuleType, str],
) -> None:
    """A crowd whose picture is old asks at once: 200 lists of 800 shards kept the loop for more than a second."""
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    request = request_of(name="default") if method == "Describe" else request_of()
    made = turns_of_calls(monkeypatch, *told)
    call: Any = served.channel.unary_unary(f"/nebula.v1.{service}/{method}", request_of.SerializeToString)
    await asyncio.gather(*(call(request, timeout=SECONDS) for _ in range(10)))
    assert len(set(made)) == 10


@pytest.mark.parametrize(
    ("away", "over"),
    [({3}, True), ({3, 4}, True), ({4, 5}, True), ({2}, True), ({2, 3}, False), ({2, 3, 4}, False), ({1, 2}, False)],
)
async def test_who_drops_a_keyspace_while_a_node_is_replaced_waits_for_no_more_than_a_majority(
    served: Served, away: set[int], *, over: bool
) -> None:
    """1 and 2 vote, 4 takes the place of 3, 5 has a learner: with 3 dead, it was waited for in vain."""
    shard = served.node.meta.shards[DEFAULT_GROUP]._replace(replicas=(), roles=())
    for node, role in ((1, Role.VOTER), (2, Role.VOTER), (3, Role.LEAVING), (4, Role.JOINING), (5, Role.LEARNER)):
        shard = shard.with_role(node, node, role)
    removals = [Removal(shard.group, node, node) for node in sorted(away)]
    meta: Any = SimpleNamespace(shards={shard.group: shard}, removals=removals, learners=frozenset())
    backend: Any = SimpleNamespace(meta=meta)
    assert module.KeyspaceService(backend)._powerless({shard.group: module._voters(meta, shard.group)}) is over


async def test_many_that_are_made_or_dropped_at_once_are_as_many_entries(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step that was taken had those of all others proposed in vain, and planned anew: of 1,000 keyspaces 300 were
    made within a minute, and meta's log grew by 250 KB for each."""
    count, entries = 40, 0
    submit = served.node.submit

    def counted(group: int, command: Command, deadline: int) -> int:
        nonlocal entries
        entries += group == META_GROUP and command.kind == Kind.TXN
        return submit(group, command, deadline)

    monkeypatch.setattr(served.node, "submit", counted)
    service, context = module.KeyspaceService(served.backend), SimpleNamespace(time_remaining=lambda: SECONDS)
    made = [
        keyspace_pb2.KeyspaceCreateRequest(name=f"k{one}", partitioning=keyspace_pb2.SINGLE) for one in range(count)
    ]
    await asyncio.gather(*(service.Create(request.SerializeToString(), context) for request in made))
    assert len(served.node.meta.keyspaces) >= count
    assert entries <= 4 * count
    dropped = [keyspace_pb2.KeyspaceDropRequest(name=f"k{one}") for one in range(count)]
    entries = 0
    await asyncio.gather(*(service.Drop(request.SerializeToString(), context) for request in dropped))
    assert entries <= 4 * count


async def test_who_makes_one_behind_too_many_others_is_told_so(served: Served) -> None:
    service, context = module.KeyspaceService(served.backend), SimpleNamespace(time_remaining=lambda: 0.2)
    raw = keyspace_pb2.KeyspaceCreateRequest(name="k", partitioning=keyspace_pb2.SINGLE).SerializeToString()
    async with service._turns.turn(Due(SECONDS)):
        with pytest.raises(TooManyRequests, match="under way"):
            await service.Create(raw, context)
    await service.Create(raw, SimpleNamespace(time_remaining=lambda: SECONDS))

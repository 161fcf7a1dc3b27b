"""v3electionpb.Election on one node."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from grpc import StatusCode

from nebuladb.api import leadership, pace
from nebuladb.api.etcd import line
from nebuladb.kv.pin import Pin
from nebuladb.kv.view import Page
from nebuladb.pb.etcd import election_pb2 as pb
from nebuladb.pb.etcd import lease_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import GROUP, ask, begin, eventually, lose_leader, refused
from tests.unit.api.turns import Turns
from tests.unit.node.lone import SECONDS

NO_LEADER = (StatusCode.UNKNOWN, "election: no leader")
NOT_LEADER = (StatusCode.UNKNOWN, "election: not leader")
NO_FIELD = (StatusCode.UNKNOWN, '"leader" field must be provided')


async def leases(etcd: Faced, *ids: int) -> None:
    for lease in ids:
        await ask(etcd, lease_pb2.LeaseGrantRequest(TTL=60, ID=lease))


def campaign(lease: int, value: bytes = b"v") -> pb.CampaignRequest:
    return pb.CampaignRequest(name=b"E", lease=lease, value=value)


LEADER = pb.LeaderRequest(name=b"E")


async def behind(etcd: Faced, request: pb.CampaignRequest) -> Any:
    """A campaign that waits."""
    lines = etcd.api.face.lines
    before = len(lines)
    call = begin(etcd, request)
    await etcd.until(lambda: len(lines) == before + 1)
    return call


async def test_a_campaign_is_won_proclaimed_and_resigned(etcd: Faced) -> None:
    """etcd 63."""
    await leases(etcd, 200)
    assert await refused(etcd, LEADER) == NO_LEADER
    won = await ask(etcd, campaign(200, b"one"))
    assert won.leader == pb.LeaderKey(name=b"E", key=b"E/c8", rev=won.header.revision, lease=200)
    told = await ask(etcd, LEADER)
    assert (told.kv.key, told.kv.value, told.kv.create_revision) == (b"E/c8", b"one", won.leader.rev)
    said = await ask(etcd, pb.ProclaimRequest(leader=won.leader, value=b"two"))
    assert said.header.revision == won.header.revision + 1
    assert (await ask(etcd, LEADER)).kv.value == b"two"
    wrong = pb.LeaderKey(name=b"E", key=b"E/c8", rev=won.leader.rev + 1, lease=200)
    assert (await ask(etcd, pb.ResignRequest(leader=wrong))).header.revision == said.header.revision
    assert await refused(etcd, pb.ProclaimRequest(leader=wrong, value=b"x")) == NOT_LEADER
    await ask(etcd, pb.ResignRequest(leader=won.leader))
    assert await refused(etcd, LEADER) == NO_LEADER
    await ask(etcd, pb.ResignRequest(leader=won.leader))
    assert await refused(etcd, pb.ProclaimRequest(leader=won.leader, value=b"x")) == NOT_LEADER


async def test_who_campaigns_again_says_its_new_value(etcd: Faced) -> None:
    await leases(etcd, 1)
    first = await ask(etcd, campaign(1, b"one"))
    assert await ask(etcd, campaign(1, b"one")) == first
    again = await ask(etcd, campaign(1, b"two"))
    assert again.leader == first.leader
    assert (await ask(etcd, LEADER)).kv.value == b"two"


async def test_the_next_one_leads_when_the_leader_goes(etcd: Faced) -> None:
    await leases(etcd, 1, 2, 3)
    first = await ask(etcd, campaign(1))
    second = await behind(etcd, campaign(2, b"second"))
    third = await behind(etcd, campaign(3, b"third"))
    await ask(etcd, pb.ResignRequest(leader=first.leader))
    led = await asyncio.wait_for(second, SECONDS)
    assert (await ask(etcd, LEADER)).kv.value == b"second"
    await ask(etcd, lease_pb2.LeaseRevokeRequest(ID=2))
    assert (await asyncio.wait_for(third, SECONDS)).leader.rev > led.leader.rev
    assert (await ask(etcd, LEADER)).kv.value == b"third"


async def test_who_loses_its_lease_while_it_waits_is_not_called_the_leader(etcd: Faced) -> None:
    """etcd 63. (etcd itself answers with the key of the entry that is gone.)"""
    await leases(etcd, 1, 2)
    await ask(etcd, campaign(1))
    call = await behind(etcd, campaign(2))
    await ask(etcd, lease_pb2.LeaseRevokeRequest(ID=2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, SECONDS)
    assert (caught.value.code(), caught.value.details()) == NOT_LEADER


async def test_a_campaign_taken_back_leaves_no_entry(etcd: Faced) -> None:
    await leases(etcd, 1, 2)
    await ask(etcd, campaign(1))
    (await behind(etcd, campaign(2))).cancel()

    async def alone() -> bool:
        return (await etcd.range(b"E/", b"E0")).count == 1

    await eventually(alone)
    assert len(etcd.node.groups[GROUP].hub) == 0


async def test_refusals_have_the_words_of_etcds_client(etcd: Faced) -> None:
    """etcd 63."""
    no_lease = (StatusCode.UNKNOWN, "etcdserver: requested lease not found")
    no_key = (StatusCode.UNKNOWN, "etcdserver: key is not provided")
    assert await refused(etcd, campaign(999)) == no_lease
    assert await refused(etcd, pb.ProclaimRequest(value=b"x")) == NO_FIELD
    assert await refused(etcd, pb.ResignRequest()) == NO_FIELD
    assert await refused(etcd, pb.ProclaimRequest(leader=pb.LeaderKey(), value=b"x")) == no_key
    await leases(etcd, 1)
    leader = (await ask(etcd, campaign(1))).leader
    leader.lease = 999
    assert await refused(etcd, pb.ProclaimRequest(leader=leader, value=b"x")) == no_lease


async def test_an_observer_is_told_each_leader_and_its_last_word(etcd: Faced) -> None:
    await leases(etcd, 1, 2)
    observe = etcd.channel.unary_stream(
        "/v3electionpb.Election/Observe", pb.LeaderRequest.SerializeToString, pb.LeaderResponse.FromString
    )(LEADER)
    told = observe.__aiter__()
    hub = etcd.node.groups[GROUP].hub
    await etcd.until(lambda: len(hub) == 1)  # it waits for the first candidate

    async def value() -> tuple[bytes, bool]:
        response = await asyncio.wait_for(anext(told), SECONDS)
        return response.kv.value, response.header.revision >= response.kv.mod_revision

    first = await ask(etcd, campaign(1, b"one"))
    assert await value() == (b"one", True)
    await ask(etcd, pb.ProclaimRequest(leader=first.leader, value=b"uno"))
    assert await value() == (b"uno", True)
    second = await behind(etcd, campaign(2, b"two"))
    await ask(etcd, pb.ResignRequest(leader=first.leader))
    await asyncio.wait_for(second, SECONDS)
    assert await value() == (b"two", True)
    observe.cancel()
    await etcd.until(lambda: len(hub) == 0)


async def test_an_observer_that_wants_a_leader_of_the_cluster_is_sent_away_without(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 44."""
    monkeypatch.setattr(leadership, "CHECK_SECONDS", 0.01)
    await leases(etcd, 1)
    await ask(etcd, campaign(1, b"one"))
    observe = etcd.channel.unary_stream(
        "/v3electionpb.Election/Observe", pb.LeaderRequest.SerializeToString, pb.LeaderResponse.FromString
    )(LEADER, metadata=(("hasleader", "true"),))
    told = observe.__aiter__()
    assert (await asyncio.wait_for(anext(told), SECONDS)).kv.value == b"one"
    lose_leader(etcd)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(anext(told), SECONDS)
    assert (caught.value.code(), caught.value.details()) == (StatusCode.UNAVAILABLE, "etcdserver: no leader")


@pytest.fixture
async def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Long reads have a row a stretch, and a turn each; in which turns of the loop they came."""
    monkeypatch.setattr(line, "FEW_ENTRIES", 1, raising=False)
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    turn, scan = Turns(), Pin.scan
    found: list[int] = []

    def scanned(pin: Pin, *args: Any, **options: Any) -> Page:
        if "limit" not in options:
            found.append(turn.now)
        return scan(pin, *args, **{**options, "limit": 1})

    monkeypatch.setattr(Pin, "scan", scanned)
    return found


async def test_who_leads_among_many_is_looked_for_in_stretches(etcd: Faced, turns: list[int]) -> None:
    """Each call looked at all entries at once, with their values, and all calls in one turn."""
    for number in (5, 1, 9, 2):
        await etcd.set(b"E/%d" % number, b"%d" % number)
    told = await asyncio.gather(*(ask(etcd, LEADER) for _ in range(10)))
    assert {response.kv.value for response in told} == {b"5"}
    assert len(turns) == len(set(turns)) == 30
    assert all(pin.closed for pin in etcd.pump.store(GROUP)._pins)


async def test_who_leaves_while_the_line_is_read_in_stretches_is_missed(etcd: Faced, turns: list[int]) -> None:
    await leases(etcd, 1, 2, 3)
    first = await ask(etcd, campaign(1))
    second, third = (asyncio.create_task(ask(etcd, campaign(lease))) for lease in (2, 3))
    await etcd.until(lambda: bool(turns))
    await ask(etcd, pb.ResignRequest(leader=first.leader))
    done, _ = await asyncio.wait((second, third), timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    led = (await done.pop()).leader
    assert (await ask(etcd, LEADER)).kv.key == led.key
    await ask(etcd, pb.ResignRequest(leader=led))
    assert {(await call).leader.lease for call in (second, third)} == {2, 3}


async def test_an_election_with_too_many_entries_is_refused(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "MAX_ENTRIES", 2)
    monkeypatch.setattr(line, "FEW_ENTRIES", 1)
    for number in range(3):
        await etcd.set(b"E/%d" % number)
    assert "more than 2 entries" in (await refused(etcd, LEADER))[1]

"""Changes of members through the real server: what a lone node grants, and what it refuses with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nebuladb.client import AsyncClient
from nebuladb.errors import ChangeRefused, InvalidArgument, NoLeader, UnknownOutcome
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.members import add_step, claim_step
from nebuladb.node.record import NodeState
from nebuladb.pb.nebula.peer.v1 import peer_pb2
from nebuladb.server.joining import JoinService
from nebuladb.shard import Descriptor
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient([served.address]) as client:
        yield client


async def test_an_id_is_issued_once_however_often_it_is_asked_for(client: AsyncClient) -> None:
    made = await client.add_member("n9", "127.0.0.1:9")
    assert (made.state, made.started, made.learner, made.replicas) == ("joining", False, False, 0)
    assert (await client.add_member("n9", "127.0.0.1:9")).node_id == made.node_id
    assert [member.name for member in await client.members() if member.node_id == made.node_id] == ["n9"]
    await client.remove_member("n9")
    await client.remove_member("n9")  # a repeat of what is done
    assert (await client.add_member("n9", "127.0.0.1:9")).node_id != made.node_id, "no id is used twice"


async def test_the_list_is_of_now_or_if_nobody_can_tell_as_the_node_sees_it(
    served: Served, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = served.node.meta
    await client.add_member("n9", "127.0.0.1:9")
    now, served.node.meta = served.node.meta, before

    async def refresh(timeout: float) -> None:
        raise NoLeader

    monkeypatch.setattr(served.backend, "refresh", refresh)
    assert [member.name for member in await client.members()] == ["n1"]

    async def learn(timeout: float) -> None:
        served.node.meta = now

    monkeypatch.setattr(served.backend, "refresh", learn)
    assert [member.name for member in await client.members()] == ["n1", "n9"]


async def test_what_makes_no_sense_is_refused(client: AsyncClient) -> None:
    (own,) = await client.members()
    for nowhere in ("nowhere", "127.0.0.1:99999", "127.0.0.1:0", "0.0.0.0:5000", "[::]:5000", "http://h:1"):
        with pytest.raises(InvalidArgument, match="no peer address"):
            await client.add_member("n9", nowhere)
    with pytest.raises(InvalidArgument, match="no node's name"):
        await client.add_member("n 9", "127.0.0.1:9")
    with pytest.raises(ChangeRefused, match="last member"):
        await client.remove_member(own.name)
    with pytest.raises(ChangeRefused, match="there is no node 'n8'"):
        await client.add_member("n9", "127.0.0.1:9", replaces="n8")
    await client.add_member("n9", "127.0.0.1:9")
    with pytest.raises(ChangeRefused, match="never started"):
        await client.add_member("n10", "127.0.0.1:10", replaces="n9")


async def test_nobody_joins_under_another_nodes_address(served: Served, client: AsyncClient) -> None:
    """Whether its name was added, with an address that it doesn't come with, or not."""
    (own,) = await client.members()
    made = await client.add_member("n8", "127.0.0.1:8")
    await client.add_member("n9", "127.0.0.1:9")
    joins = JoinService(served.backend)
    for name in ("n9", "n10"):
        for other, address in ((own.name, own.peer_address), ("n8", "127.0.0.1:8")):
            answer = await joins.answer(peer_pb2.JoinRequest(name=name, peer_address=address, claim=5))
            assert answer.refused.startswith(f"node {other!r} has the peer address {address}; give ")
    assert {member.name for member in await client.members() if member.started} == {own.name}
    answer = await joins.answer(peer_pb2.JoinRequest(name="n8", peer_address="127.0.0.1:8", claim=6))
    assert answer.refused == ""
    assert served.backend.meta.nodes[made.node_id].claim == 6


async def test_who_gets_the_name_of_a_removed_node_stays(
    served: Served, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was lost, and before the removal was taken up again somebody had added another node of that name."""
    first = await client.add_member("n9", "127.0.0.1:9")
    propose, added = served.backend.propose, first.node_id + 2

    async def lose(shard: Descriptor, command: Command, timeout: float) -> Answer:
        monkeypatch.undo()
        await propose(shard, command, timeout)
        again = add_step(served.backend.meta, "n9", "127.0.0.1:9", added)
        assert again is not None
        await propose(shard, Command(Kind.TXN, again), timeout)
        raise UnknownOutcome("the answer was lost")

    monkeypatch.setattr(served.backend, "propose", lose)
    await client.remove_member("n9")
    assert [member.node_id for member in await client.members() if member.name == "n9"] == [added]


async def test_the_first_directory_that_claims_an_id_has_it(served: Served, client: AsyncClient) -> None:
    made = await client.add_member("n9", "127.0.0.1:9", learner=True)
    joins = JoinService(served.backend)
    request = peer_pb2.JoinRequest(name="n9", peer_address="127.0.0.1:9", claim=5)

    async def told() -> peer_pb2.JoinResponse:
        while (answer := await joins.answer(request)).wait:
            served.clock.time += 50
            served.node.tick(served.clock.time, served.clock.time)
            served.pump.wake()
            await asyncio.sleep(0)
        return answer

    answer = await asyncio.wait_for(told(), SECONDS)
    assert (answer.node_id, answer.refused) == (made.node_id, "")
    assert len(answer.peers) == 2
    other = await joins.answer(peer_pb2.JoinRequest(name="n9", peer_address="127.0.0.1:9", claim=6))
    assert "forgot its votes" in other.refused
    record = served.backend.meta.nodes[made.node_id]
    assert (record.claim, record.state) == (5, NodeState.JOINING)
    with pytest.raises(ChangeRefused):
        claim_step(served.backend.meta, "n9", "127.0.0.1:9", 6, 1)

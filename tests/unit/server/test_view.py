"""What `/readyz` and `/status` say of a node: the truth, also while it starts, stops, or has not replayed meta."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nebuladb.errors import DeadlineExceeded, StoreError, TooManyRequests
from nebuladb.futures import PromptFuture
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP, Generation, GroupId
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.importer import Importer
from nebuladb.node.disk import STALLED_BIT, Space
from nebuladb.node.entry import encode_command
from nebuladb.node.housekeeping import announced
from nebuladb.node.incoming import Incoming
from nebuladb.node.keyspaces import Spec, checked, create_step
from nebuladb.node.meta import Meta
from nebuladb.node.output import Request
from nebuladb.node.peer import Peer
from nebuladb.node.record import NodeState
from nebuladb.server import config
from nebuladb.server.peers import Peers
from nebuladb.server.view import NodeView
from nebuladb.shard import Partitioning
from tests.unit.node.lone import SECONDS, Lone

PEER, CLIENT = "n1:2", "n1:1"


@pytest.fixture
async def lone() -> AsyncIterator[Lone]:
    """It has announced its addresses."""
    lone = Lone(CLIENT)
    await asyncio.wait_for(lone.serve(), SECONDS)
    async with asyncio.timeout(SECONDS):
        while not announced(lone.node.meta, 11, PEER, CLIENT):
            await lone.tick()
    yield lone
    await lone.pump.stop()


def view(lone: Lone | None, tmp_path: Path, peer: str = PEER, client: str = CLIENT) -> NodeView:
    peers: Any = SimpleNamespace(
        pump=lone.pump if lone else None, identity=SimpleNamespace(name="n1", node=11, cluster=7 if lone else 0)
    )
    settings = {"data-dir": str(tmp_path), "advertise-peer-addr": peer, "advertise-client-addr": client}
    return NodeView(config.load({"name": "n1", **settings}, {}, None), cast(Peers, peers))


async def test_a_node_is_ready_from_the_opening_of_its_client_port_to_its_drain(lone: Lone, tmp_path: Path) -> None:
    shown = view(lone, tmp_path)
    assert (await shown.readyz())[0] is False
    shown.serving = True
    assert await shown.readyz() == (True, "")
    shown.serving = False
    assert (await shown.readyz())[0] is False


async def test_a_node_that_does_not_know_the_keyspaces_is_not_ready(lone: Lone, tmp_path: Path) -> None:
    """Its shards may have replayed their logs before the meta group has; a put would be refused until then."""
    shown = view(lone, tmp_path)
    shown.serving = True
    lone.node.meta = Meta()
    ready, why = await shown.readyz()
    assert not ready
    assert "keyspaces" in why


@pytest.mark.parametrize(("peer", "client"), [("n1:3", CLIENT), (PEER, "n1:3")])
async def test_a_node_whose_addresses_are_not_known_is_not_ready(
    lone: Lone, tmp_path: Path, peer: str, client: str
) -> None:
    """The next one that is stopped and moved would look for it at the old ones, and with a third one away nobody would
    ever lead."""
    shown = view(lone, tmp_path, peer, client)
    shown.serving = True
    ready, why = await shown.readyz()
    assert not ready
    assert f"addresses: peer {peer}, client {client}" in why


async def test_what_will_never_be_announced_is_not_waited_for(lone: Lone, tmp_path: Path) -> None:
    """Of a node that is no member in its own picture, which is older than it; and another version, or state."""
    shown = view(lone, tmp_path)
    shown.serving = True
    record = lone.node.meta.nodes.pop(11)
    assert await shown.readyz() == (True, "")
    lone.node.meta.nodes[11] = record._replace(version="0", state=NodeState.LEAVING)
    assert await shown.readyz() == (True, "")


async def test_a_node_whose_disk_is_full_is_ready_under_an_address_that_it_can_not_read(
    lone: Lone, tmp_path: Path
) -> None:
    """The others have it; here the row isn't taken before there is room."""
    shown = view(lone, tmp_path, "n1:3")
    shown.serving = True
    lone.node.host.disk.space = Space.CRITICAL
    assert await shown.readyz() == (True, "")


async def made(lone: Lone) -> int:
    """The group of a user's keyspace, which has a leader."""
    spec = checked(Spec("k", Partitioning.SINGLE))
    while (step := create_step(lone.node.meta, spec)) is not None:
        await lone.pump.propose(META_GROUP, Command(Kind.TXN, step), SECONDS)
    group = max(lone.node.meta.shards)
    async with asyncio.timeout(SECONDS):
        while group not in lone.node.host.replicas or not lone.node.host.replicas[group].raft.leader:
            await lone.tick()
    return group


async def test_a_node_is_ready_when_all_of_its_shards_have_caught_up(
    lone: Lone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it stops the next node then: a shard that still came to this one took no writes."""
    group, asked, behind, confirm = await made(lone), list[int](), True, lone.pump.confirm

    def asking(of: int, timeout: float) -> PromptFuture[None]:
        asked.append(of)
        if of == group and behind:
            raise DeadlineExceeded
        return confirm(of, timeout)

    monkeypatch.setattr(lone.pump, "confirm", asking)
    shown = view(lone, tmp_path)
    shown.serving = True
    ready, why = await shown.readyz()
    assert not ready
    assert why.startswith(f"shard {group} has not caught up")
    behind = False
    assert await shown.readyz() == (True, "")
    behind = True
    asked.clear()
    assert await shown.readyz() == (True, ""), "once in a process is enough"
    assert group not in asked


@pytest.mark.parametrize("lost", [False, True])
async def test_a_node_that_waits_for_a_snapshot_is_not_ready(lone: Lone, tmp_path: Path, lost: bool) -> None:
    group, snapshots = await made(lone), lone.node.snapshots
    shown = view(lone, tmp_path)
    shown.serving = True
    assert await shown.readyz() == (True, "")
    if lost:
        snapshots.lost[group] = None
    else:
        importer = Importer(lone.data, GroupId(group), Generation(9))
        snapshots.incoming[group] = Incoming((99, 1), 2, 12, importer, 9)
    assert await shown.readyz() == (False, f"shard {group} waits for a snapshot")
    lone.node.host.disk.space = Space.CRITICAL
    assert await shown.readyz() == (True, ""), "which a full disk doesn't take"


async def test_of_the_shard_that_every_node_needs_it_says_that_a_snapshot_is_awaited(
    lone: Lone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of it said, 2 s later, that no leader confirmed it: whoever looked for the fault looked at the leader."""

    def asking(of: int, timeout: float) -> PromptFuture[None]:
        raise DeadlineExceeded("no leader confirmed the read in time")

    monkeypatch.setattr(lone.pump, "confirm", asking)
    shown = view(lone, tmp_path)
    shown.serving = True
    importer = Importer(lone.data, DEFAULT_GROUP, Generation(9))
    lone.node.snapshots.incoming[DEFAULT_GROUP] = Incoming((99, 1), 2, 12, importer, 9)
    assert await shown.readyz() == (False, f"shard {DEFAULT_GROUP} waits for a snapshot")


async def test_a_shard_that_nobody_leads_is_not_waited_for(
    lone: Lone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all nodes would be taken from clients for one that lacks a majority, and this one can't help it."""
    group, confirm = await made(lone), lone.pump.confirm

    def asking(of: int, timeout: float) -> PromptFuture[None]:
        if of == group:
            lone.node.host.step_down(group)
            raise DeadlineExceeded
        return confirm(of, timeout)

    monkeypatch.setattr(lone.pump, "confirm", asking)
    shown = view(lone, tmp_path)
    shown.serving = True
    assert await shown.readyz() == (True, "")


@pytest.mark.parametrize(
    ("cluster", "join", "why"),
    [(0, "n2:2", "waiting to join"), (7, "n2:2", "the databases are not open yet"), (7, "", "the databases are not")],
)
async def test_a_node_that_joins_or_opens_its_databases_waits_for_no_founding_node(
    tmp_path: Path, cluster: int, join: str, why: str
) -> None:
    peers: Any = SimpleNamespace(pump=None, identity=SimpleNamespace(name="n1", node=11, cluster=cluster))
    settings = {"name": "n1", "data-dir": str(tmp_path), "join": join}
    ready, told = await NodeView(config.load(settings, {}, None), cast(Peers, peers)).readyz()
    assert not ready
    assert told.startswith(why)


async def test_a_node_that_waits_to_be_founded_says_so(tmp_path: Path) -> None:
    shown = view(None, tmp_path)
    assert await shown.readyz() == (False, "waiting for the other founding nodes")
    assert shown.livez() == (True, "")
    status = shown.status()
    assert status["groups"] == []
    assert status["cluster_id"] == "0" * 16


async def test_the_status_has_what_the_contract_names(lone: Lone, tmp_path: Path) -> None:
    status = view(lone, tmp_path).status()
    assert {"name", "node_id", "cluster_id", "pid", "version", "addresses", "groups", "alarms"} <= set(status)
    assert [group["keyspace"] for group in status["groups"]] == ["", "default", "etcd"]
    for group in status["groups"]:
        wanted = {"group", "keyspace", "replica", "role", "leader", "term", "committed", "applied", "revision"}
        assert wanted <= set(group)
        assert (group["role"], group["leader"]) == ("leader", "n1")


async def test_a_broken_node_is_not_alive(lone: Lone, tmp_path: Path) -> None:
    lone.pump.fail(RuntimeError("a bug"))
    alive, why = view(lone, tmp_path).livez()
    assert not alive
    assert "a bug" in why


@pytest.mark.parametrize("well", [False, True])
async def test_a_node_that_cannot_read_its_data_is_not_ready_where_another_is_well(
    lone: Lone, tmp_path: Path, well: bool
) -> None:
    """One that is alone, or all on a storage that is away for a moment, would be taken from clients for nothing."""
    shown = view(lone, tmp_path)
    shown.serving = True
    lone.node.host.peers[12] = Peer(5, b"", b"", status=0 if well else STALLED_BIT)
    lone.pump.request_failed(StoreError("IO error: Input/output error"))
    ready, why = await shown.readyz()
    assert ready is not well
    assert ("data store" in why) is well


async def test_a_shard_whose_writes_find_no_room_shows_a_full_queue_and_counts_them(lone: Lone, tmp_path: Path) -> None:
    """It may have half of the node's bytes: their queue was half full at most, and nothing said what was refused."""
    shown = view(lone, tmp_path)
    waiting = lone.node.host.replicas[DEFAULT_GROUP].proposals
    wire = encode_command(Command(Kind.PUT, b"x" * (waiting.most // 16)))
    for number in range(1 << 20, (1 << 20) + 15):
        waiting.add(Request(number, DEFAULT_GROUP, wire, 1 << 60))
    with pytest.raises(TooManyRequests):
        waiting.add(Request(1, DEFAULT_GROUP, wire, 1 << 60))
    filled = {queue.name: queue.size / queue.bound for queue in shown.queues()}
    refused = {group.group: group.proposals_refused for group in shown.groups()}
    waiting.close()
    assert filled[f"writes_bytes_{DEFAULT_GROUP}"] > 0.9
    assert filled["writes_bytes"] < 0.6
    assert refused == {META_GROUP: 0, DEFAULT_GROUP: 1, ETCD_GROUP: 0}

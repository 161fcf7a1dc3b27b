"""Whom a node takes for a peer, as its picture of the cluster is or isn't newer than the other's (S14, S16)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from structlog.testing import capture_logs

from nebuladb.errors import IdentityError, NodeRemoved
from nebuladb.kv.answer import KeyValue
from nebuladb.node.catch_up import Lag
from nebuladb.node.frame import FRAME_VERSION
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.meta import LIFE_KEY, NODE_KEY, VERSION_KEY, Meta
from nebuladb.node.record import NodeRecord, NodeState
from nebuladb.pb.nebula.peer.v1 import peer_pb2 as pb
from nebuladb.server import config, peers
from nebuladb.server.directory import DataDirectory
from nebuladb.server.peers import MAX_REFUSED, Peers
from nebuladb.server.site import restored_id

FOUNDING = Founding(7, (Founder("n1", 11, "a:1"), Founder("n2", 12, "b:1")))


def picture(*records: NodeRecord, issued: int = 0, life: int = 0) -> Meta:
    rows = {record.key: record.encode() for record in records} | {VERSION_KEY: b"1", NODE_KEY: b"%d" % issued}
    if life:
        rows[LIFE_KEY] = b"%016x" % life
    return Meta(KeyValue(key, 1, number, 1, 0, value) for number, (key, value) in enumerate(sorted(rows.items()), 2))


MEMBERS = picture(NodeRecord(11, "n1", "a:1"), NodeRecord(12, "n2", "b:1"), NodeRecord(13, "n3", "c:1"), issued=1)
REMOVED = picture(NodeRecord(11, "n1", "a:1"), NodeRecord(12, "n2", "b:1", state=NodeState.REMOVED), issued=1)


@pytest.fixture
def ours(tmp_path: Path) -> Peers:
    """Node n1's, which serves."""
    directory = DataDirectory(tmp_path)
    identity = directory.found(Identity(11, "n1"), FOUNDING)
    found = Peers(config.load({"data-dir": str(tmp_path)}, {}), directory, identity, 100)
    found.pump = node(MEMBERS)
    return found


RESTORED = {name: restored_id(7, name) for name in ("n1", "n2")}


@pytest.fixture
def restored(tmp_path: Path) -> Peers:
    """Node n1's in a cluster that was made from a backup."""
    directory = DataDirectory(tmp_path)
    founding = Founding(7, tuple(Founder(name, number, f"{name}:1") for name, number in RESTORED.items()))
    identity = directory.found(Identity(RESTORED["n1"], "n1"), founding)
    found = Peers(config.load({"data-dir": str(tmp_path)}, {}), directory, identity, 100)
    found.pump = node(picture(*(NodeRecord(number, name, f"{name}:1") for name, number in RESTORED.items())))
    return found


def node(meta: Meta, leader: int = 0) -> Any:
    replica = SimpleNamespace(raft=SimpleNamespace(leader=leader, commit=5), applied=5)
    return SimpleNamespace(node=SimpleNamespace(meta=meta, host=SimpleNamespace(replicas={1: replica})))


def shake(node_id: int, name: str, *, issued: int = 0, cluster: int = 7, version: int = FRAME_VERSION) -> pb.Handshake:
    return pb.Handshake(
        node_id=node_id, name=name, cluster_id=cluster, version=version, receiver=11, issued_nodes=issued
    )


@pytest.mark.parametrize(
    ("handshake", "why"),
    [
        (shake(13, "n3", cluster=8), "belongs to cluster"),
        (shake(99, "n3", issued=1), "bears the name of"),
        (shake(99, "n4", issued=1), "is no member.* add n4 --peer-address HOST:PORT`"),
        (shake(13, "n3", version=FRAME_VERSION - 1), "upgrade it"),
    ],
    ids=str,
)
def test_a_stranger_is_refused(ours: Peers, handshake: pb.Handshake, why: str) -> None:
    with pytest.raises(IdentityError, match=why):
        ours.check(handshake)


def test_who_knows_of_more_nodes_than_we_do_is_taken_for_one(ours: Peers) -> None:
    """A node that was away while the others were replaced, one after the other, would refuse all of them for ever."""
    ours.check(shake(13, "n3"))
    ours.check(shake(99, "n4", issued=2))
    ours.check(shake(99, "n3", issued=2))


def test_who_was_removed_is_refused_whatever_it_knows(ours: Peers) -> None:
    ours.pump = node(REMOVED)
    with pytest.raises(IdentityError, match="was removed"):
        ours.check(shake(12, "n2", issued=9))


class Links:
    def __init__(self) -> None:
        self.dropped: list[int] = []

    def drop(self, node: int) -> None:
        self.dropped.append(node)

    def connect_to(self, addresses: dict[int, str]) -> None: ...


def of_life(life: int) -> Meta:
    return picture(NodeRecord(11, "n1", "a:1"), NodeRecord(12, "n2", "b:1"), life=life)


def test_another_life_of_the_cluster_is_refused(ours: Peers) -> None:
    """The same backup was restored twice: ids are the same, and histories aren't."""
    first = shake(12, "n2")
    first.life = 0xA
    ours.check(first)
    ours.pump = node(of_life(0xB))
    assert ours.handshake(12).life == 0xB
    with pytest.raises(IdentityError, match=r"another life.*Empty the directory"):
        ours.check(first)
    ours.check(shake(12, "n2"))
    ours.pump = node(of_life(0xA))
    ours.check(first)


def test_who_was_in_this_life_and_knows_of_none_is_refused(restored: Peers) -> None:
    """Restored once more from the same files it has its id, and the votes and writes that it acknowledged are gone."""
    other = shake(RESTORED["n2"], "n2")
    other.receiver = RESTORED["n1"]
    restored.check(other)
    records = [NodeRecord(number, name, f"{name}:1", f"{name}:2") for name, number in RESTORED.items()]
    restored.pump = node(picture(*records, life=0xB), leader=1)
    with pytest.raises(IdentityError, match=r"forgotten its votes.*member replace n2"):
        restored.check(other)
    other.life = 0xB
    restored.check(other)


def test_who_knows_of_no_life_in_a_cluster_that_was_never_restored_is_let_in(ours: Peers) -> None:
    """A build that kept no life ran on it, and the others have drawn one since: it was refused for ever."""
    meta = picture(NodeRecord(11, "n1", "a:1", "a:2"), NodeRecord(12, "n2", "b:1", "b:2"), life=0xB)
    for leader in (0, 1):
        ours.pump = node(meta, leader)
        ours.check(shake(12, "n2"))


def test_who_knows_of_no_life_and_was_not_restored_since_is_let_in(restored: Peers, tmp_path: Path) -> None:
    """A build that kept no life ran on a restored cluster, and the others have drawn one since."""
    records = [NodeRecord(number, name, f"{name}:1", f"{name}:2") for name, number in RESTORED.items()]
    identity = Identity(RESTORED["n2"], "n2", 7)
    other = Peers(config.load({}, {}), DataDirectory(tmp_path / "n2"), identity, 100)
    assert not other.handshake(RESTORED["n1"]).announced
    other.pump = node(picture(*records[:1], NodeRecord(RESTORED["n2"], "n2", "n2:1")))
    assert not other.handshake(RESTORED["n1"]).announced
    other.pump = node(picture(*records))
    for leader in (0, 1):
        restored.pump = node(picture(*records, life=0xB), leader)
        restored.check(other.handshake(RESTORED["n1"]))


def test_of_a_restored_node_that_knows_of_no_life_only_a_majority_can_tell(restored: Peers) -> None:
    """This node may have missed that the other was in this life; a founded cluster's can't forget and keep its id."""
    meta = picture(*(NodeRecord(number, name, f"{name}:1") for name, number in RESTORED.items()), life=0xB)
    restored.pump = node(meta)
    other = shake(RESTORED["n2"], "n2")
    other.receiver = RESTORED["n1"]
    with pytest.raises(IdentityError, match="can't be told before a majority"):
        restored.check(other)
    restored.pump = node(meta, leader=1)
    restored.check(other)


def test_a_link_to_another_life_ends_when_this_node_hears_of_its_own(ours: Peers, tmp_path: Path) -> None:
    links = Links()
    ours._lives = {12: 0xA, 13: 0}
    for life, dropped in ((0, []), (0xA, []), (0xB, [12])):
        ours.pump = node(of_life(life))
        ours.meta_changed(links)  # type: ignore[arg-type]
        assert links.dropped == dropped
    assert (tmp_path / "voting").read_bytes() == b"000000000000000b 7124c74e\n"


def test_a_node_whose_data_does_not_say_so_yet_knows_its_life_of_before(ours: Peers, tmp_path: Path) -> None:
    """After a kill its data is behind its log, and what of that is committed only another node can tell."""
    ours._directory.keep_life(0xA)
    again = Peers(ours._config, ours._directory, ours.identity, 101)
    again.pump = node(MEMBERS)
    assert again.handshake(12).life == 0xA
    stranger = shake(12, "n2")
    stranger.life = 0xB
    with pytest.raises(IdentityError, match="another life"):
        again.check(stranger)
    (tmp_path / "voting").write_bytes(b"damaged")
    with pytest.raises(IdentityError, match="voting is damaged"):
        Peers(ours._config, ours._directory, ours.identity, 102)


def test_a_hello_tells_who_was_removed_and_where_the_others_are(ours: Peers) -> None:
    ours.pump = node(REMOVED)
    told = ours.hello(pb.HelloRequest(cluster_id=7, node_id=12, name="n2", has_data=True))
    assert told.removed
    assert [(peer.node_id, peer.address) for peer in told.peers] == [(11, "a:1")]
    # It was a founder: now its name is free, and it is added under a new id, not replaced.
    assert ours.hello(pb.HelloRequest(node_id=22, name="n2")).known_node_id == 0
    assert ours.hello(pb.HelloRequest(node_id=22, name="n1")).known_node_id == 11
    stranger = ours.hello(pb.HelloRequest(cluster_id=8, node_id=13, name="n3"))
    assert (stranger.removed, list(stranger.peers)) == (False, [])


class Neighbours:
    """A transport whose neighbours answer `reply`."""

    def __init__(self, reply: pb.HelloResponse) -> None:
        self.reply = reply
        self.wanted: list[dict[int, str]] = []

    async def hello(self, address: str, request: pb.HelloRequest) -> pb.HelloResponse:
        return self.reply

    def connect_to(self, addresses: dict[int, str]) -> None:
        self.wanted.append(dict(addresses))


async def watch(ours: Peers, reply: pb.HelloResponse, rounds: int) -> tuple[Neighbours, list[NodeRemoved]]:
    transport, removed = Neighbours(reply), list[NodeRemoved]()
    task = asyncio.create_task(ours.watch_removal(transport, removed.append))  # type: ignore[arg-type]
    while len(transport.wanted) < rounds and not removed:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    return transport, removed


async def test_without_a_leader_a_node_asks_where_the_others_are(ours: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "REMOVAL_SECONDS", 0)
    reply = pb.HelloResponse(cluster_id=7, peers=[pb.PeerAddress(node_id=14, address="d:1")])
    transport, removed = await watch(ours, reply, 1)
    assert (transport.wanted[0], removed) == ({11: "a:1", 12: "b:1", 13: "c:1", 14: "d:1"}, [])
    ours.pump = node(MEMBERS, leader=1)
    transport, _ = await watch(ours, reply, 1)
    assert transport.wanted[0] == {11: "a:1", 12: "b:1", 13: "c:1"}


async def test_what_is_older_than_its_own_picture_is_no_news(ours: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had been away for long told it, round after round, where a third had been: its link there was cut, and
    what lacked it for a majority had no leader for good."""
    monkeypatch.setattr(peers, "REMOVAL_SECONDS", 0)
    moved = [pb.PeerAddress(node_id=13, address="old:1")]
    transport, _ = await watch(ours, pb.HelloResponse(cluster_id=7, meta_index=4, peers=moved), 1)
    assert transport.wanted[0][13] == "c:1"


@pytest.mark.parametrize("order", [1, -1])
async def test_of_two_words_the_newer_one_counts(ours: Peers, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setattr(peers, "REMOVAL_SECONDS", 0)
    said = [
        pb.HelloResponse(cluster_id=7, meta_index=index, peers=[pb.PeerAddress(node_id=14, address=address)])
        for index, address in ((6, "old:1"), (7, "new:1"))
    ]
    transport = Neighbours(said[0])
    replies = said[::order]

    async def hello(address: str, request: pb.HelloRequest) -> pb.HelloResponse:
        return replies.pop(0) if replies else said[0]

    monkeypatch.setattr(transport, "hello", hello)
    task = asyncio.create_task(ours.watch_removal(transport, lambda _: None))  # type: ignore[arg-type]
    while len(transport.wanted) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    assert [wanted[14] for wanted in transport.wanted] == ["new:1", "new:1"]


async def test_what_a_node_says_to_itself_is_no_news(ours: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has n3's address, and n3 its own: by its own old picture it looked for n3 where it is itself, for ever."""
    monkeypatch.setattr(peers, "REMOVAL_SECONDS", 0)
    transport, moved = Neighbours(pb.HelloResponse()), pb.PeerAddress(node_id=13, address="a:1")

    async def hello(address: str, request: pb.HelloRequest) -> pb.HelloResponse:
        return ours.hello(request) if address == "c:1" else pb.HelloResponse(node_id=12, cluster_id=7, peers=[moved])

    monkeypatch.setattr(transport, "hello", hello)
    task = asyncio.create_task(ours.watch_removal(transport, lambda _: None))  # type: ignore[arg-type]
    while not transport.wanted:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    assert transport.wanted[0][13] == "a:1"


async def test_a_node_that_was_removed_hears_of_it(ours: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "REMOVAL_SECONDS", 0)
    _, removed = await watch(ours, pb.HelloResponse(cluster_id=7, removed=True), 1)
    assert "was removed from its cluster" in removed[0].message


async def test_lags_are_those_of_all_nodes_that_answer(ours: Peers) -> None:
    word = pb.Lag(group=2, term=3, last=100, lacks=5)

    class Asked:
        async def lags(self, address: str, request: pb.LagsRequest) -> pb.LagsResponse:
            assert (request.cluster_id, request.node_id) == (7, 13)
            if address == "b:1":
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
            return pb.LagsResponse(lags=[word])

    assert await ours.lags_elsewhere(Asked(), 13) == [Lag(2, 3, 100, 5)]  # type: ignore[arg-type]


def test_lags_are_told_to_the_own_cluster(ours: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "lags_led", lambda host, node: [Lag(2, 3, 100, node)])
    assert list(ours.lags(pb.LagsRequest(cluster_id=7, node_id=5)).lags) == [pb.Lag(group=2, term=3, last=100, lacks=5)]
    assert not ours.lags(pb.LagsRequest(cluster_id=8, node_id=5)).lags
    ours.pump = None
    assert not ours.lags(pb.LagsRequest(cluster_id=7, node_id=5)).lags


def test_of_who_was_removed_nothing_is_kept(ours: Peers) -> None:
    ours.pump.peer_up = lambda node, incarnation: None  # type: ignore[method-assign,union-attr]
    for number in (12, 13):
        ours.peer_up(shake(number, f"n{number - 10}"))
    ours.pump = node(REMOVED)
    ours.meta_changed(Links())  # type: ignore[arg-type]
    assert list(ours._seen) == list(ours._lives) == [13]


def test_who_is_refused_says_why_once(ours: Peers) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            ours.refused("node 'n1' (id 0b) was removed from this cluster")
    assert [(log["event"], log["why"], log["log_level"]) for log in logs] == [
        ("refused by a peer", "node 'n1' (id 0b) was removed from this cluster", "warning")
    ]


def test_why_a_peer_is_refused_is_said_once_and_again_when_it_is_long_ago(ours: Peers) -> None:
    """Of a node that was wiped, and is started anew under another id each time, nothing was said after 64 of them."""

    def said(*ids: int) -> int:
        with capture_logs() as logs:
            for number in ids:
                with pytest.raises(IdentityError):
                    ours.check(shake(number, "n3", issued=1))
        return len(logs)

    assert said(100, 100) == 1
    assert said(*range(200, 200 + MAX_REFUSED - 1), 100) == MAX_REFUSED - 1
    assert said(300, 100) == 1, "one that comes again and again is not long ago"
    assert said(200) == 1

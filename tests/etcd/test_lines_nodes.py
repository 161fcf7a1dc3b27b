"""Lines that need several nodes: without a majority (9, 23, 29, 30, 44), over changes of leader (45, 50, 66)."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from nebuladb.pb.etcd import cluster_pb2, kv_pb2
from nebuladb.pb.etcd import maintenance_pb2 as maintenance
from tests.etcd.client import Client, Refused, Watch
from tests.etcd.servers import Nebula
from tests.etcd.test_lines_kv import refused
from tests.etcd.test_lines_txn import put, read
from tests.integration.test_snapshots import ENVIRON, received, sample

HAS_LEADER = (("hasleader", "true"),)


@pytest.fixture
def clients(three_nodes: Nebula) -> Iterator[list[Client]]:
    """Of each node."""
    with ExitStack() as stack:
        yield [stack.enter_context(Client(endpoint)) for endpoint in three_nodes.endpoints]


@pytest.fixture(scope="module")
def minority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Watch]]:
    """The last of three nodes, which wrote ``k`` while it could, and a watch that asked for a leader before."""
    with Nebula(tmp_path_factory.mktemp("minority"), 3) as cluster:
        last = next(node for node in cluster.all if node != cluster.leader(cluster.etcd_group))
        with Client(cluster.endpoints[last]) as client, client.watch(HAS_LEADER) as watch:
            client.put(b"k", b"v")
            watch.create(b"k")
            client.grant(600, 77)
            # What the others acknowledged is here before they go.
            cluster.wait_for(lambda: client.get(b"k", serializable=True) is not None, "the put is applied here")
            cluster.kill(*(node for node in cluster.all if node != last))
            yield client, watch


@pytest.mark.etcd(44)
def test_a_watch_that_wants_a_leader_ends_without_one(minority: tuple[Client, Watch]) -> None:
    client, watch = minority
    with pytest.raises(Refused) as ended:
        watch.next(60.0)
    assert str(ended.value) == "UNAVAILABLE etcdserver: no leader"
    with client.watch(HAS_LEADER) as late, pytest.raises(Refused, match="UNAVAILABLE etcdserver: no leader"):
        late.create(b"k")
    with client.watch() as patient:
        assert patient.create(b"k").created, "who doesn't ask for one may wait"


@pytest.mark.etcd(9)
def test_serializable_reads_need_no_majority(minority: tuple[Client, Watch]) -> None:
    client, _ = minority
    found = client.get(b"k", serializable=True)
    assert found is not None
    assert found.value == b"v"


@pytest.mark.etcd(23, 29, 30)
def test_what_needs_a_majority_is_unavailable(minority: tuple[Client, Watch]) -> None:
    """All at once: each is answered when etcd's own patience is over, 7 s, and not when the caller's is."""
    client, _ = minority
    local = [read(b"k", serializable=True)] * 2
    compare = kv_pb2.Compare(key=b"k", target=kv_pb2.Compare.VALUE, value=b"v")
    done = client.txn([compare], local, local)
    assert (done.succeeded, done.responses[0].response_range.count) == (True, 1), "serializable, for all of it is"
    calls: dict[str, Callable[[], object]] = {
        "range": lambda: client.range(b"k"),
        "put": lambda: client.put(b"k"),
        "revoke": lambda: client.revoke(77),
        "a transaction that is not all serializable": lambda: client.txn([compare], [*local, read(b"k")]),
        "a transaction that writes": lambda: client.txn([compare], [*local, put(b"k")]),
        "keep-alive": lambda: client.keep_alive(77),
    }
    with ThreadPoolExecutor(len(calls)) as pool:
        answers = dict(zip(calls, pool.map(refused, calls.values()), strict=True))
    assert {what: answer.startswith("UNAVAILABLE etcdserver: ") for what, answer in answers.items()} == dict.fromkeys(
        calls, True
    ), answers


@pytest.mark.etcd(23)
def test_a_transaction_that_reads_needs_no_log_entry(nebula: Client, place: bytes) -> None:
    nebula.put(place)
    growth = []
    for operation in (read(place), put(place)):
        before = nebula.status().raftIndex
        for _ in range(50):
            nebula.txn(success=[operation], failure=[read(place)])
        growth.append(nebula.status().raftIndex - before)
    reads, writes = growth
    assert writes >= 50
    assert reads < 25, "what the node logs by itself meanwhile"


@pytest.mark.etcd(65)
def test_a_bad_transaction_is_refused_on_every_replica(
    three_nodes: Nebula, clients: list[Client], place: bytes
) -> None:
    for client in clients:
        current = client.put(place + b"ok").header.revision
        bad = [put(place + b"no"), read(place, revision=current + 100)]
        text = "OUT_OF_RANGE etcdserver: mvcc: required revision is a future revision"
        assert refused(lambda client=client, bad=bad: client.txn(success=bad)) == text  # type: ignore[misc]
    last = clients[0].put(place + b"ok").header.revision
    for client in clients:
        three_nodes.wait_for(
            lambda client=client: client.range(place, serializable=True).header.revision == last,  # type: ignore[misc]
            "all are there",
        )
        assert client.get(place + b"no", serializable=True) is None
    request = maintenance.HashKVRequest(revision=last)
    assert len({c.call("Maintenance/HashKV", request, maintenance.HashKVResponse).hash for c in clients}) == 1


def move_leader(three_nodes: Nebula, clients: list[Client]) -> None:
    """To the next node."""
    group = three_nodes.etcd_group
    leader = three_nodes.leader(group)
    target = clients[(leader + 1) % 3].status().header.member_id
    request = maintenance.MoveLeaderRequest(targetID=target)
    clients[leader].call("Maintenance/MoveLeader", request, maintenance.MoveLeaderResponse)
    three_nodes.wait_for(lambda: clients[(leader + 2) % 3].status().leader == target, "the third knows")


@pytest.mark.etcd(56)
def test_leadership_is_moved_at_the_leader(three_nodes: Nebula, clients: list[Client]) -> None:
    leader = three_nodes.leader(three_nodes.etcd_group)
    other = clients[(leader + 1) % 3]
    request = maintenance.MoveLeaderRequest(targetID=other.status().header.member_id)
    text = "FAILED_PRECONDITION etcdserver: not leader"
    assert refused(lambda: other.call("Maintenance/MoveLeader", request, maintenance.MoveLeaderResponse)) == text
    before = other.status().raftTerm
    move_leader(three_nodes, clients)
    assert {client.status().leader for client in clients} == {other.status().header.member_id}
    assert other.status().raftTerm > before


@pytest.mark.etcd(50, 66)
def test_what_is_left_of_a_lease_survives_a_change_of_leader(three_nodes: Nebula, clients: list[Client]) -> None:
    lease = clients[0].grant(100).ID
    granted = time.monotonic()
    three_nodes.wait_for(lambda: clients[0].time_to_live(lease).TTL <= 96, "some of it is over")
    move_leader(three_nodes, clients)
    for client in clients:
        left = client.time_to_live(lease)
        assert left.grantedTTL == 100
        assert left.TTL <= 97, "etcd's would be whole again"
        assert 100 - (time.monotonic() - granted) - 1 <= left.TTL
    clients[0].revoke(lease)


@pytest.mark.etcd(45)
def test_a_watch_goes_on_over_changes_of_leader(three_nodes: Nebula, clients: list[Client], place: bytes) -> None:
    with ExitStack() as stack:
        watches = [stack.enter_context(client.watch()) for client in clients]
        for watch in watches:
            watch.create(place, place[:-1] + b"0")
        revisions = []
        for turn in range(6):
            revisions += [clients[turn % 3].put(place + b"%d" % number).header.revision for number in range(5)]
            if turn % 2:
                move_leader(three_nodes, clients)
        for watch in watches:
            seen: list[int] = []
            while len(seen) < len(revisions):
                seen += [event.kv.mod_revision for event in watch.next().events]
            assert seen == revisions, "each once, in order"


@pytest.mark.etcd(45)
def test_a_watch_does_not_rewind_when_its_node_is_given_a_snapshot(tmp_path: Path) -> None:
    """A node that stood still while the log it needs was cut gets a snapshot; its watch goes on where it was."""
    with Nebula(tmp_path, 3, environ=ENVIRON) as cluster, ExitStack() as stack:
        clients = [stack.enter_context(Client(endpoint)) for endpoint in cluster.endpoints]
        group = cluster.etcd_group
        lagging = next(node for node in cluster.all if node != cluster.leader(group))
        others = [client for node, client in enumerate(clients) if node != lagging]
        with clients[lagging].watch() as watch:
            watch.create(b"k")
            before = [others[0].put(b"k").header.revision for _ in range(5)]
            seen: list[int] = []
            while len(seen) < 5:
                seen += [event.kv.mod_revision for event in watch.next().events]
            status = cluster.status(lagging)
            assert status is not None
            applied = next(int(entry["applied"]) for entry in status["groups"] if entry["group"] == group)
            with cluster.paused(lagging):
                missed = [others[0].put(b"k", bytes(100_000)).header.revision for _ in range(300)]
                cluster.wait_for(
                    lambda: all(
                        sample(cluster, node, f'nebula_raft_log_start{{group="{group}"') > applied + 1
                        for node in cluster.all
                        if node != lagging
                    ),
                    "the log that it needs is cut",
                )
            last = others[0].put(b"k").header.revision
            try:
                while not seen or seen[-1] < last:
                    seen += [event.kv.mod_revision for event in watch.next().events]
            except (Refused, queue.Empty):
                with clients[lagging].watch() as again:  # as a client resumes
                    again.create(b"k", start_revision=seen[-1] + 1)
                    while seen[-1] < last:
                        seen += [event.kv.mod_revision for event in again.next().events]
        assert seen == [*before, *missed, last]
        assert received(cluster, lagging) >= 1


@pytest.mark.etcd(51, 52)
def test_members_that_are_added(tmp_path: Path) -> None:
    """A learner that never starts: it has no name and no client URLs; a second is refused, and so is its promotion."""
    with Nebula(tmp_path, 1) as cluster, Client(cluster.endpoints[0]) as client:

        def add(url: str, *, learner: bool) -> cluster_pb2.MemberAddResponse:
            request = cluster_pb2.MemberAddRequest(peerURLs=[url], isLearner=learner)
            return client.call("Cluster/MemberAdd", request, cluster_pb2.MemberAddResponse)

        added = add("http://127.0.0.1:9", learner=True)
        assert (added.member.name, list(added.member.clientURLs), added.member.isLearner) == ("", [], True)
        assert len(added.members) == 2
        twice = "FAILED_PRECONDITION etcdserver: Peer URLs already exists"
        assert refused(lambda: add("http://127.0.0.1:9", learner=False)) == twice
        assert refused(lambda: add("http://127.0.0.1:10", learner=True)) == (
            "FAILED_PRECONDITION etcdserver: too many learner members in cluster"
        )
        promote = cluster_pb2.MemberPromoteRequest(ID=added.member.ID)
        assert refused(lambda: client.call("Cluster/MemberPromote", promote, cluster_pb2.MemberPromoteResponse)) == (
            "FAILED_PRECONDITION etcdserver: can only promote a learner member which is in sync with leader"
        )
        removal = cluster_pb2.MemberRemoveRequest(ID=added.member.ID)
        left = client.call("Cluster/MemberRemove", removal, cluster_pb2.MemberRemoveResponse)
        assert [member.ID for member in left.members] == [client.status().header.member_id]
        client.put(b"k")

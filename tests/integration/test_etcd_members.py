"""A cluster run by etcd's API alone: members come, learn, are promoted and go; what holds on all of them at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nebuladb.ids import ETCD_GROUP
from nebuladb.pb.etcd import cluster_pb2, kv_pb2
from nebuladb.pb.etcd import maintenance_pb2 as pb
from tests.etcd.client import Client, Refused
from tests.integration.members import REMOVED_EXIT, Growing

ETCDCTL = shutil.which("etcdctl")
SECONDS = 60.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Growing]:
    """Three nodes, and two places more."""
    with Growing(tmp_path, 3, 5) as cluster:
        cluster.start(0, 1, 2)
        cluster.wait_ready(0, 1, 2)
        yield cluster


def members(client: Client) -> dict[int, cluster_pb2.Member]:
    request = cluster_pb2.MemberListRequest(linearizable=True)
    answer = client.call("Cluster/MemberList", request, cluster_pb2.MemberListResponse)
    return {member.ID: member for member in answer.members}


def add(client: Client, cluster: Growing, place: int, *, learner: bool) -> int:
    """The id of a member at `place`'s peer address."""
    url = f"http://{cluster.members[place].config.peer_addr}"
    request = cluster_pb2.MemberAddRequest(peerURLs=[url], isLearner=learner)
    answer = client.call("Cluster/MemberAdd", request, cluster_pb2.MemberAddResponse)
    assert (answer.member.name, list(answer.member.clientURLs), list(answer.member.peerURLs)) == ("", [], [url])
    return answer.member.ID


def refusal(client: Client, method: str, request: object, answer: object) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        client.call(method, request, answer)  # type: ignore[arg-type]
    return caught.value.code, caught.value.text


@pytest.mark.etcd(51, 52)
def test_a_learner_comes_is_promoted_and_goes(cluster: Growing) -> None:
    with Client(cluster.endpoints[0]) as client, Client(cluster.endpoints[3]) as fourth:
        for number in range(50):
            client.put(b"k%d" % number, b"v")
        node = add(client, cluster, 3, learner=True)
        promote = cluster_pb2.MemberPromoteRequest(ID=node)
        early = refusal(client, "Cluster/MemberPromote", promote, cluster_pb2.MemberPromoteResponse)
        assert early == (
            "FAILED_PRECONDITION",
            "etcdserver: can only promote a learner member which is in sync with leader",
        )
        cluster.start(3)
        cluster.wait_ready(3)
        cluster.wait_for(lambda: members(client)[node].name == cluster.name(3), "it has its name and its id")
        cluster.wait_for(lambda: bool(members(client)[node].clientURLs), "it has said where its clients reach it")
        member = members(client)[node]
        assert (list(member.clientURLs), member.isLearner) == ([f"http://{cluster.endpoints[3]}"], True)

        cluster.wait_for(lambda: fourth.status().raftAppliedIndex == client.status().raftIndex, "it has everything")
        status = fourth.status()
        assert (status.isLearner, status.header.member_id) == (True, node)
        assert fourth.range(b"k", b"l", serializable=True).count == 50
        no = ("UNAVAILABLE", "etcdserver: rpc not supported for learner")
        assert refusal(fourth, "KV/Range", kv_pb2.RangeRequest(key=b"k1"), kv_pb2.RangeResponse) == no
        assert refusal(fourth, "KV/Put", kv_pb2.PutRequest(key=b"k1"), kv_pb2.PutResponse) == no

        def promoted() -> bool:
            try:
                client.call("Cluster/MemberPromote", promote, cluster_pb2.MemberPromoteResponse)
            except Refused as error:
                if not error.text.startswith("etcdserver: can only promote a learner member"):
                    raise
            return not members(client)[node].isLearner

        cluster.wait_for(promoted, "it is promoted")
        again = refusal(client, "Cluster/MemberPromote", promote, cluster_pb2.MemberPromoteResponse)
        assert again == ("FAILED_PRECONDITION", "etcdserver: can only promote a learner member")
        assert fourth.put(b"k1", b"by the new one").header.member_id == node

        remove = cluster_pb2.MemberRemoveRequest(ID=node)
        answer = client.call("Cluster/MemberRemove", remove, cluster_pb2.MemberRemoveResponse, seconds=SECONDS)
        assert node not in {one.ID for one in answer.members}
        assert cluster.wait_exit(3) == REMOVED_EXIT
        gone = refusal(client, "Cluster/MemberRemove", remove, cluster_pb2.MemberRemoveResponse)
        assert gone == ("NOT_FOUND", "etcdserver: member not found")
        assert client.range(b"k", b"l").count == 50


@pytest.mark.etcd(55, 56)
def test_what_is_said_to_one_holds_on_all(cluster: Growing) -> None:
    """Alarms, hashes and leadership."""
    clients = [Client(endpoint) for endpoint in cluster.endpoints[:3]]
    try:
        for number in range(20):
            clients[number % 3].put(b"k%d" % (number % 7), b"%d" % number)
        clients[0].compact(10)
        newest = clients[0].revision()
        for revision in (0, 10, 15, newest):
            for client in clients:
                client.range(b"k")  # linearizable: it has all of it
            answers = [
                client.call("Maintenance/HashKV", pb.HashKVRequest(revision=revision), pb.HashKVResponse)
                for client in clients
            ]
            found = {(one.hash, one.compact_revision, one.hash_revision) for one in answers}
            assert len(found) == 1, answers
            assert {one.hash_revision for one in answers} == {revision or newest}

        alarm = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=5, alarm=pb.NOSPACE)
        clients[0].call("Maintenance/Alarm", alarm, pb.AlarmResponse)
        for client in clients:
            assert len(client.call("Maintenance/Alarm", pb.AlarmRequest(), pb.AlarmResponse).alarms) == 1
            full = refusal(client, "KV/Put", kv_pb2.PutRequest(key=b"k"), kv_pb2.PutResponse)
            assert full == ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")
            client.delete(b"k6")
        alarm.action = pb.AlarmRequest.DEACTIVATE
        clients[1].call("Maintenance/Alarm", alarm, pb.AlarmResponse)
        for client in clients:
            assert not client.call("Maintenance/Alarm", pb.AlarmRequest(), pb.AlarmResponse).alarms
            client.put(b"k", b"again")

        leader = cluster.leader(ETCD_GROUP)
        target = clients[(leader + 1) % 3].status().header.member_id
        move = pb.MoveLeaderRequest(targetID=target)
        elsewhere = refusal(clients[(leader + 1) % 3], "Maintenance/MoveLeader", move, pb.MoveLeaderResponse)
        assert elsewhere == ("FAILED_PRECONDITION", "etcdserver: not leader")
        clients[leader].call("Maintenance/MoveLeader", move, pb.MoveLeaderResponse)
        cluster.wait_for(lambda: {client.status().leader for client in clients} == {target}, "it leads")
    finally:
        for client in clients:
            client.__exit__()


@pytest.mark.skipif(ETCDCTL is None, reason="etcdctl isn't installed here (Debian: etcd-client)")
@pytest.mark.etcd(54)
def test_etcdctl_saves_what_nebula_cli_restores(cluster: Growing, tmp_path: Path) -> None:
    file = tmp_path / "saved"
    with Client(cluster.endpoints[0]) as client:
        for number in range(300):
            client.put(b"k%d" % number, os.urandom(1000))
        value = client.get(b"k7")
    assert ETCDCTL is not None
    environ = {**os.environ, "ETCDCTL_API": "3"}
    command = [ETCDCTL, "--endpoints", cluster.endpoints[0], "snapshot", "save", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    verified = [json.loads(line) for line in cluster.done("-o", "json", "snapshot", "verify", str(file)).splitlines()]
    assert 300 in [row.get("keys") for row in verified], verified
    data = tmp_path / "restored"
    cluster.done("snapshot", "restore", str(file), "--data-dir", str(data), "--name", "r1")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    assert cluster.cli("snapshot", "verify", str(file)).returncode == 1
    assert value is not None

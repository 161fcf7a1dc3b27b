"""Lines 51 to 58: what one node says of itself and of its cluster."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from nebuladb.pb.etcd import auth_pb2, cluster_pb2, header_pb2, lease_pb2
from nebuladb.pb.etcd import maintenance_pb2 as pb
from tests.etcd.client import Client
from tests.etcd.test_lines_kv import COMPACTED, FUTURE, refused

BLOB = 32 << 10


@pytest.mark.etcd(53)
def test_status(client: Client, place: bytes) -> None:
    client.put(place)
    before = client.status()
    assert re.fullmatch(r"3\.\d+\.\d+", before.version)
    assert before.dbSize >= before.dbSizeInUse > 0
    assert before.leader == before.header.member_id
    assert before.raftTerm == before.header.raft_term
    assert (list(before.errors), before.isLearner) == ([], False)
    client.put(place)
    after = client.status()
    assert after.raftIndex > before.raftIndex
    # Etcd counts an entry as applied a moment after it has answered.
    statuses = (client.status() for _ in range(1000))
    after = next(status for status in statuses if status.raftAppliedIndex > before.raftAppliedIndex)
    assert after.raftIndex >= after.raftAppliedIndex


@pytest.mark.etcd(54)
def test_snapshot(client: Client, place: bytes, end: bytes) -> None:
    for number in range(20):
        client.put(place + b"%d" % number, random.Random(number).randbytes(20_000))
    parts = list(client.stream("Maintenance/Snapshot", pb.SnapshotRequest(), pb.SnapshotResponse))
    blobs = [part.blob for part in parts]
    assert max(map(len, blobs)) == BLOB
    assert len(parts) > 10
    left = sum(map(len, blobs[:-1]))
    for part in parts[:-1]:
        left -= len(part.blob)
        assert part.remaining_bytes == left
    assert parts[-1].remaining_bytes == 0
    assert blobs[-1] == hashlib.sha256(b"".join(blobs[:-1])).digest()
    client.delete(place, end)


def hash_kv(client: Client, revision: int) -> pb.HashKVResponse:
    return client.call("Maintenance/HashKV", pb.HashKVRequest(revision=revision), pb.HashKVResponse)


@pytest.mark.etcd(55)
def test_hashes_of_the_keys(client: Client, place: bytes) -> None:
    client.put(place, b"1")
    floor = client.put(place, b"2").header.revision
    client.compact(floor)
    # Not at the floor itself: of that etcd remembers another hash, from when it compacted.
    middle = client.put(place, b"3").header.revision
    first, now = hash_kv(client, middle), hash_kv(client, 0)
    assert first.compact_revision == now.compact_revision == floor
    assert now.header.revision == middle
    assert now.hash == first.hash == hash_kv(client, 0).hash
    last = client.put(place, b"4").header.revision
    assert hash_kv(client, middle).hash == first.hash, "of that revision still"
    assert hash_kv(client, 0).hash == hash_kv(client, last).hash != first.hash
    assert refused(lambda: hash_kv(client, last + 1)) == FUTURE
    assert refused(lambda: hash_kv(client, floor - 1)) == COMPACTED


@pytest.mark.etcd(55)
def test_a_hash_names_its_revision(nebula: Client, place: bytes) -> None:
    # Since etcd 3.6.
    revision = nebula.put(place).header.revision
    assert hash_kv(nebula, 0).hash_revision == hash_kv(nebula, revision).hash_revision == revision


@pytest.mark.etcd(56)
def test_moving_leadership_to_nobody(client: Client) -> None:
    text = "FAILED_PRECONDITION etcdserver: bad leader transferee"
    request = pb.MoveLeaderRequest(targetID=4711)
    assert refused(lambda: client.call("Maintenance/MoveLeader", request, pb.MoveLeaderResponse)) == text


@pytest.mark.etcd(51)
def test_the_list_of_members(client: Client) -> None:
    listed = client.call("Cluster/MemberList", cluster_pb2.MemberListRequest(), cluster_pb2.MemberListResponse)
    (member,) = listed.members
    assert member.ID == listed.header.member_id == client.status().header.member_id
    assert member.name
    assert list(member.clientURLs) == [f"http://{client.endpoint}"]
    assert [url.partition(":")[0] for url in member.peerURLs] == ["http"]
    assert not member.isLearner


@pytest.mark.etcd(58)
def test_headers_are_filled(client: Client, place: bytes) -> None:
    put = client.put(place)
    lease = client.grant(60)
    with client.watch() as watch:
        headers: list[header_pb2.ResponseHeader] = [put.header, watch.create(place).header]
        headers += [client.put(place).header, watch.next().header]
    headers += [client.range(place).header, client.txn().header, client.delete(place).header]
    headers += [lease.header, client.keep_alive(lease.ID).header, client.time_to_live(lease.ID).header]
    leases = client.call("Lease/LeaseLeases", lease_pb2.LeaseLeasesRequest(), lease_pb2.LeaseLeasesResponse)
    headers += [leases.header, client.revoke(lease.ID).header, client.status().header]
    assert len({(header.cluster_id, header.member_id) for header in headers}) == 1
    for header in headers:
        assert header.cluster_id
        assert header.member_id
        assert header.raft_term
        assert header.revision >= put.header.revision


@pytest.mark.etcd(57)
def test_authentication_is_off(client: Client) -> None:
    status = client.call("Auth/AuthStatus", auth_pb2.AuthStatusRequest(), auth_pb2.AuthStatusResponse)
    assert not status.enabled
    request = auth_pb2.AuthenticateRequest(name="root", password="x")
    text = "FAILED_PRECONDITION etcdserver: authentication is not enabled"
    assert refused(lambda: client.call("Auth/Authenticate", request, auth_pb2.AuthenticateResponse)) == text
    root = "FAILED_PRECONDITION etcdserver: root user does not exist"
    assert (
        refused(lambda: client.call("Auth/AuthEnable", auth_pb2.AuthEnableRequest(), auth_pb2.AuthEnableResponse))
        == root
    )

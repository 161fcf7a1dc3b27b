"""Cluster, Maintenance and Auth of a node that serves alone (etcd 51 to 56)."""

from __future__ import annotations

import asyncio
import hashlib
import os
from io import BytesIO
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory

from nebuladb.api import backend
from nebuladb.api.etcd import cluster, maintenance
from nebuladb.api.etcd.face import MAX_SECONDS
from nebuladb.errors import NoLeader
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP
from nebuladb.node.alarms import Alarm, AlarmKind
from nebuladb.node.backup import BackupReader
from nebuladb.node.catch_up import Lag
from nebuladb.node.disk import Space
from nebuladb.node.identity import Founding
from nebuladb.node.meta import Meta
from nebuladb.pb.etcd import auth_pb2, cluster_pb2, kv_pb2, lease_pb2
from nebuladb.pb.etcd import maintenance_pb2 as pb
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import ask
from tests.unit.node.lone import SECONDS

MODULES = {"Auth": auth_pb2, "Cluster": cluster_pb2, "Maintenance": pb, "KV": kv_pb2}
NODE = 11
Status = grpc.StatusCode


async def call(etcd: Faced, path: str, request: Any = None, **fields: Any) -> Any:
    """The response of SERVICE/METHOD."""
    service, _, name = path.partition("/")
    method = MODULES[service].DESCRIPTOR.services_by_name[service].methods_by_name[name]
    kinds = [message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type)]
    invoke: Any = etcd.channel.unary_unary(
        f"/etcdserverpb.{path}", lambda message: message.SerializeToString(), kinds[1].FromString
    )
    return await invoke(request or kinds[0](**fields), timeout=SECONDS)


async def refused(etcd: Faced, path: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(etcd, path, **fields)
    return caught.value.code(), caught.value.details() or ""


# --- Cluster


async def test_members(etcd: Faced) -> None:
    listed = await call(etcd, "Cluster/MemberList", linearizable=True)
    assert (listed.header.member_id, listed.header.revision) == (NODE, 0)
    [own] = listed.members
    assert (own.ID, own.name, list(own.peerURLs)) == (NODE, "n1", ["http://n1:2"])
    added = await call(etcd, "Cluster/MemberAdd", peerURLs=["http://n2:2"], isLearner=True)
    assert (added.member.name, list(added.member.clientURLs), added.member.isLearner) == ("", [], True)
    assert sorted(member.ID for member in added.members) == sorted((NODE, added.member.ID))
    again = await refused(etcd, "Cluster/MemberAdd", peerURLs=["http://n2:2"])
    assert again == (Status.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
    second = await refused(etcd, "Cluster/MemberAdd", peerURLs=["http://n3:2"], isLearner=True)
    assert second == (Status.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster")
    early = await refused(etcd, "Cluster/MemberPromote", ID=added.member.ID)
    assert early == (
        Status.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    )
    moved = await call(etcd, "Cluster/MemberUpdate", ID=added.member.ID, peerURLs=["http://n4:2"])
    assert {url for member in moved.members for url in member.peerURLs} == {"http://n1:2", "http://n4:2"}
    taken = await refused(etcd, "Cluster/MemberUpdate", ID=added.member.ID, peerURLs=["http://n1:2"])
    assert taken == (Status.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
    gone = await call(etcd, "Cluster/MemberRemove", ID=added.member.ID)
    assert [member.ID for member in gone.members] == [NODE]
    twice = await refused(etcd, "Cluster/MemberRemove", ID=added.member.ID)
    assert twice == (Status.NOT_FOUND, "etcdserver: member not found")


async def test_what_members_are_refused(etcd: Faced) -> None:
    for method in ("MemberRemove", "MemberPromote", "MemberUpdate"):
        assert await refused(etcd, f"Cluster/{method}", ID=9) == (Status.NOT_FOUND, "etcdserver: member not found")
    for urls in ([], ["x"], ["http://n2"], ["http://n2:2/x"], ["ftp://n2:2"], ["http://n2:2", "x"], ["http://[::1"]):
        found = await refused(etcd, "Cluster/MemberAdd", peerURLs=urls)
        assert found == (Status.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"), urls
    several = await refused(etcd, "Cluster/MemberAdd", peerURLs=["http://n2:2", "http://n3:2"])
    assert several == await refused(etcd, "Cluster/MemberAdd", peerURLs=["http://n2:2"] * (cluster.MAX_URLS + 1))
    assert several[0] is Status.INVALID_ARGUMENT
    last = await refused(etcd, "Cluster/MemberRemove", ID=NODE)
    assert last == (Status.UNKNOWN, "etcdserver: re-configuration failed due to not enough started members")
    voter = await refused(etcd, "Cluster/MemberPromote", ID=NODE)
    assert voter == (Status.FAILED_PRECONDITION, "etcdserver: can only promote a learner member")
    running = await refused(etcd, "Cluster/MemberUpdate", ID=NODE, peerURLs=["http://n9:2"])
    assert "--advertise-peer-addr n9:2" in running[1]
    same = await call(etcd, "Cluster/MemberUpdate", ID=NODE, peerURLs=["http://n1:2"])
    assert len(same.members) == 1


async def test_all_leaders_are_asked_before_a_learner_is_promoted(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say is judged by `node.catch_up`, which has its own tests."""
    added = (await call(etcd, "Cluster/MemberAdd", peerURLs=["http://n2:2"], isLearner=True)).member.ID
    record = etcd.node.meta.nodes[added]
    word, asked, judged = Lag(ETCD_GROUP, 3, 100, 50), [], []

    async def others(node: int) -> list[Lag]:
        asked.append(node)
        return [word]

    def judge(meta: Meta, founding: Founding, node: int, lags: list[Lag]) -> bool:
        judged.append((node, lags))
        return False

    monkeypatch.setattr(etcd.backend, "lags_elsewhere", others)
    monkeypatch.setattr(cluster, "in_sync", judge)
    no = (
        Status.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    )
    assert await refused(etcd, "Cluster/MemberPromote", ID=added) == no
    assert asked == [], "it hasn't started"
    monkeypatch.setitem(etcd.node.meta.nodes, added, record._replace(claim=5))
    assert await refused(etcd, "Cluster/MemberPromote", ID=added) == no
    assert (asked, judged) == ([added], [(added, [word])])


# --- a learner


async def test_a_learner_answers_status_and_serializable_ranges(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    await etcd.set(b"k")
    monkeypatch.setattr(etcd.node.meta, "learners", frozenset((NODE,)))
    assert (await call(etcd, "Maintenance/Status")).isLearner
    assert (await etcd.range(b"k", serializable=True)).count == 1
    no = (Status.UNAVAILABLE, "etcdserver: rpc not supported for learner")
    assert await etcd.refused("Range", kv_pb2.RangeRequest(key=b"k")) == no
    assert await etcd.refused("Put", kv_pb2.PutRequest(key=b"k")) == no
    for path in ("Cluster/MemberList", "Maintenance/Alarm", "Maintenance/HashKV", "Auth/AuthStatus"):
        assert await refused(etcd, path) == no, path
    assert (await snapshot(etcd))[-1].blob


# --- Maintenance


async def test_status(etcd: Faced) -> None:
    await etcd.set(b"key", b"value")
    status = await call(etcd, "Maintenance/Status")
    assert (status.version, status.leader, status.isLearner, list(status.errors)) == ("3.5.16", NODE, False, [])
    assert status.raftTerm == status.header.raft_term > 0
    assert status.raftIndex == status.raftAppliedIndex > 0
    assert status.dbSize >= status.dbSizeInUse == len(b"keyvalue") + 2 * maintenance.KEY_BYTES
    assert status.header.revision == 2


async def test_alarms_are_declared_and_taken_back(etcd: Faced) -> None:
    raised = pb.AlarmMember(memberID=7, alarm=pb.NOSPACE)
    for _ in range(2):
        answer = await call(etcd, "Maintenance/Alarm", action="ACTIVATE", memberID=7, alarm="NOSPACE")
        assert list(answer.alarms) == [raised]
    full = (Status.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    assert await etcd.refused("Put", kv_pb2.PutRequest(key=b"k")) == full
    assert (await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k"))).deleted == 0
    assert list((await call(etcd, "Maintenance/Alarm")).alarms) == [raised]
    assert list((await call(etcd, "Maintenance/Alarm", alarm="NOSPACE")).alarms) == [raised]
    assert not (await call(etcd, "Maintenance/Alarm", alarm="CORRUPT")).alarms
    assert list((await call(etcd, "Maintenance/Status")).errors) == ["memberID:7 alarm:NOSPACE "]
    for fields in ({"memberID": 8, "alarm": "NOSPACE"}, {"memberID": 7, "alarm": "CORRUPT"}, {"memberID": 7}):
        assert not (await call(etcd, "Maintenance/Alarm", action="DEACTIVATE", **fields)).alarms
    answer = await call(etcd, "Maintenance/Alarm", action="DEACTIVATE", memberID=7, alarm="NOSPACE")
    assert list(answer.alarms) == [raised]
    assert not (await call(etcd, "Maintenance/Alarm")).alarms
    assert not (await call(etcd, "Maintenance/Alarm", action="ACTIVATE", memberID=7)).alarms
    await etcd.set(b"k")


async def test_alarms_that_are_declared_at_once_are_counted(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each found room for itself: rows of meta have a bound."""
    monkeypatch.setattr("nebuladb.api.etcd.alarms.MAX_DECLARED", 3)
    await call(etcd, "Maintenance/Alarm", action="ACTIVATE", memberID=7, alarm="NOSPACE")
    declare = [call(etcd, "Maintenance/Alarm", action="ACTIVATE", memberID=one, alarm="NOSPACE") for one in range(6)]
    answers = await asyncio.gather(*declare, return_exceptions=True)
    assert sum(isinstance(answer, Exception) for answer in answers) == 4
    assert len(etcd.node.meta.declared) == 3


async def test_corrupt_stops_all_writes_and_no_reads(etcd: Faced) -> None:
    await etcd.set(b"k")
    await call(etcd, "Maintenance/Alarm", action="ACTIVATE", alarm="CORRUPT")
    corrupt = (Status.DATA_LOSS, "etcdserver: corrupt cluster")
    assert await etcd.refused("Put", kv_pb2.PutRequest(key=b"k")) == corrupt
    assert await etcd.refused("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k")) == corrupt
    assert await etcd.refused("Compact", kv_pb2.CompactionRequest(revision=2)) == corrupt
    assert (await etcd.range(b"k")).count == 1
    assert not etcd.node.alarms_now.all(), "it says nothing of this node's data"
    [text] = etcd.node.alarms()
    assert text.startswith("the alarm CORRUPT was raised: writes are refused")
    await call(etcd, "Maintenance/Alarm", action="DEACTIVATE", alarm="CORRUPT")
    assert not etcd.node.alarms()
    await etcd.set(b"k")


async def test_alarms_of_disks_and_data_are_among_them(etcd: Faced) -> None:
    etcd.node.host.disk.space = Space.LOW
    etcd.node.alarms_now.raised(Alarm(AlarmKind.INCONSISTENT, "differs", DEFAULT_GROUP, 12))
    found = [(one.memberID, one.alarm) for one in (await call(etcd, "Maintenance/Alarm")).alarms]
    assert found == [(NODE, pb.NOSPACE), (12, pb.CORRUPT)]
    answer = await call(etcd, "Maintenance/Alarm", action="DEACTIVATE", memberID=NODE, alarm="NOSPACE")
    assert not answer.alarms, "it goes when there is room again"


@pytest.mark.parametrize("fields", [{"action": 77}, {"action": 1, "alarm": 9}])
async def test_alarms_that_end_an_etcd_are_refused(etcd: Faced, fields: dict[str, int]) -> None:
    assert (await refused(etcd, "Maintenance/Alarm", **fields))[0] is Status.INVALID_ARGUMENT
    for action in ("GET", "DEACTIVATE"):
        assert not (await call(etcd, "Maintenance/Alarm", action=action, alarm=9)).alarms


async def test_hashes(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "HASH_ROWS", 1)
    for number in range(4):
        await etcd.set(b"k", b"%d" % number)
    latest = await call(etcd, "Maintenance/HashKV")
    assert (latest.header.revision, latest.hash_revision, latest.compact_revision) == (5, 5, -1)
    earlier = await call(etcd, "Maintenance/HashKV", revision=3)
    assert (earlier.header.revision, earlier.hash_revision) == (5, 3)
    assert earlier.hash != latest.hash == (await call(etcd, "Maintenance/Hash")).hash
    await etcd.set(b"k", b"more")
    assert (await call(etcd, "Maintenance/HashKV", revision=5)).hash == latest.hash
    await etcd.call("Compact", kv_pb2.CompactionRequest(revision=4))
    assert (await call(etcd, "Maintenance/HashKV")).compact_revision == 4
    old = await refused(etcd, "Maintenance/HashKV", revision=3)
    assert old == (Status.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
    future = await refused(etcd, "Maintenance/HashKV", revision=7)
    assert future == (Status.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
    monkeypatch.setattr(maintenance, "MAX_HASHES", 0)
    busy = await refused(etcd, "Maintenance/HashKV")
    assert busy == (Status.RESOURCE_EXHAUSTED, "etcdserver: too many requests")


async def test_without_a_deadline_a_hash_takes_the_time_that_it_takes(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 55: as long as there are rows, and not 5 s."""
    monkeypatch.setattr(maintenance, "HASH_ROWS", 1)
    monkeypatch.setattr(backend, "DEFAULT_SECONDS", 0.0)
    for number in range(4):
        await etcd.set(b"k%d" % number)
    invoke: Any = etcd.channel.unary_unary("/etcdserverpb.Maintenance/HashKV")
    assert pb.HashKVResponse.FromString(await asyncio.wait_for(invoke(b""), SECONDS)).hash


async def test_without_a_deadline_a_physical_compaction_is_waited_for(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 25: it is done by then, so an error would be a lie."""
    for number in range(4):
        await etcd.set(b"k", b"%d" % number)
    monkeypatch.setattr(backend, "DEFAULT_SECONDS", 0.0)
    deleted = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(etcd.pump.reclaims, "wait", lambda store, revision: deleted)
    invoke: Any = etcd.channel.unary_unary("/etcdserverpb.KV/Compact")
    compaction = asyncio.ensure_future(invoke(kv_pb2.CompactionRequest(revision=4, physical=True).SerializeToString()))
    await etcd.until(lambda: etcd.pump.store(ETCD_GROUP).floor == 4)
    await etcd.range(b"k")
    assert not compaction.done()
    deleted.set_result(None)
    assert kv_pb2.CompactionResponse.FromString(await asyncio.wait_for(compaction, SECONDS)).header.revision == 5


async def snapshot(etcd: Faced) -> list[pb.SnapshotResponse]:
    invoke = etcd.channel.unary_stream(
        "/etcdserverpb.Maintenance/Snapshot", pb.SnapshotRequest.SerializeToString, pb.SnapshotResponse.FromString
    )
    return [response async for response in invoke(pb.SnapshotRequest(), timeout=SECONDS)]


async def test_a_snapshot_is_a_backup_with_a_digest(etcd: Faced) -> None:
    """Its blobs are of 32 KiB, the last one is the digest, and etcdctl takes the file's length."""
    for number in range(8):
        await etcd.set(b"k%d" % number, os.urandom(20_000))
    responses = await snapshot(etcd)
    *blobs, digest = (response.blob for response in responses)
    assert {len(blob) for blob in blobs[:-1]} == {32 << 10}
    assert hashlib.sha256(b"".join(blobs)).digest() == digest
    left = sum(map(len, blobs))
    for response in responses[:-1]:
        left -= len(response.blob)
        assert response.remaining_bytes == left
    assert responses[-1].remaining_bytes == 0
    data = b"".join(blobs) + digest
    assert len(data) % 512 == 32
    reader = BackupReader(BytesIO(data))
    keys = {part.descriptor.group: (part.keys, len(list(chunks))) for part, chunks in reader.shards()}
    assert keys[ETCD_GROUP][0] == 8


async def test_a_large_snapshot_is_held_in_part_only(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """What remains is a guess then, until the end is in sight: never 0 too early."""
    monkeypatch.setattr(maintenance, "HELD_BYTES", 40_000)
    for number in range(8):
        await etcd.set(b"k%d" % number, os.urandom(60_000))
    responses = await snapshot(etcd)
    assert hashlib.sha256(b"".join(one.blob for one in responses[:-1])).digest() == responses[-1].blob
    left = [one.remaining_bytes for one in responses]
    assert left[-2:] == [0, 0]
    assert min(left[:-2]) > 0


async def test_the_rest_of_maintenance(etcd: Faced) -> None:
    assert await call(etcd, "Maintenance/Defragment") == pb.DefragmentResponse()
    assert await call(etcd, "Maintenance/MoveLeader", targetID=NODE) == pb.MoveLeaderResponse()
    nobody = await refused(etcd, "Maintenance/MoveLeader", targetID=9)
    assert nobody == (Status.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
    for fields, code, text in (
        ({}, Status.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"),
        ({"version": "3"}, Status.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"),
        ({"action": 1, "version": "3.5.0"}, Status.INVALID_ARGUMENT, "etcdserver: invalid downgrade target version"),
        ({"action": 2}, Status.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job"),
        ({"action": 77}, Status.UNKNOWN, "etcdserver: unknown method"),
    ):
        assert await refused(etcd, "Maintenance/Downgrade", **fields) == (code, text)


async def test_without_a_leader_what_the_node_has_is_to_be_had(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of a survivor is the way out of a lost majority; nothing waits for longer than etcd does (etcd 30)."""
    await etcd.set(b"k", b"kept")
    await ask(etcd, lease_pb2.LeaseGrantRequest(TTL=60, ID=7))
    asked = []

    def nobody(group: int, timeout: float) -> Any:
        asked.append(timeout)
        raise NoLeader

    monkeypatch.setattr(etcd.pump, "confirm", nobody)
    assert await refused(etcd, "Cluster/MemberList", linearizable=True) == (Status.UNAVAILABLE, "etcdserver: no leader")
    asked.clear()
    assert (await snapshot(etcd))[-1].blob
    assert len(asked) == 1, "whoever it takes for the leader doesn't answer: the others are read as they are"
    assert (await ask(etcd, lease_pb2.LeaseLeasesRequest())).leases
    monkeypatch.setattr(etcd.backend, "leader", lambda group: 0)
    reader = BackupReader(BytesIO(b"".join(piece.blob for piece in await snapshot(etcd))))
    keys = {part.descriptor.group: (part.keys, len(list(chunks))) for part, chunks in reader.shards()}
    assert keys[ETCD_GROUP][0] == 1
    assert [one.ID for one in (await ask(etcd, lease_pb2.LeaseLeasesRequest())).leases] == [7]
    unhealthy = (Status.UNAVAILABLE, "etcdserver: unhealthy cluster")
    assert await refused(etcd, "Cluster/MemberAdd", peerURLs=["http://h:1"]) == unhealthy
    for path in ("Cluster/MemberList", "Maintenance/Alarm", "Auth/AuthStatus", "Cluster/MemberUpdate"):
        fields = {"linearizable": True} if path == "Cluster/MemberList" else {}
        assert (await refused(etcd, path, **fields))[0] is Status.UNAVAILABLE
    assert set(asked) == {MAX_SECONDS}


# --- Auth


async def test_authentication_is_disabled(etcd: Faced) -> None:
    status = await call(etcd, "Auth/AuthStatus")
    assert (status.enabled, status.authRevision, status.header.revision) == (False, 1, 1)
    assert (await call(etcd, "Auth/AuthDisable")).header.member_id == NODE
    assert not (await call(etcd, "Auth/UserList")).users
    assert not (await call(etcd, "Auth/RoleList")).roles
    failed = Status.FAILED_PRECONDITION
    for method, fields, code, text in (
        ("AuthEnable", {}, failed, "root user does not exist"),
        ("Authenticate", {"name": "a"}, failed, "authentication is not enabled"),
        ("UserAdd", {}, Status.INVALID_ARGUMENT, "user name is empty"),
        ("UserGet", {"name": "a"}, failed, "user name not found"),
        ("UserDelete", {"name": "a"}, failed, "user name not found"),
        ("UserChangePassword", {"name": "a"}, failed, "user name not found"),
        ("UserGrantRole", {"user": "a", "role": "r"}, failed, "user name not found"),
        ("UserRevokeRole", {"name": "a", "role": "r"}, failed, "user name not found"),
        ("RoleAdd", {}, Status.INVALID_ARGUMENT, "role name is empty"),
        ("RoleGet", {"role": "r"}, failed, "role name not found"),
        ("RoleDelete", {"role": "r"}, failed, "role name not found"),
        ("RoleGrantPermission", {"name": "r"}, Status.INVALID_ARGUMENT, "permission not given"),
        ("RoleGrantPermission", {"name": "r", "perm": {}}, failed, "role name not found"),
        ("RoleRevokePermission", {"role": "r"}, failed, "role name not found"),
    ):
        found = await refused(etcd, f"Auth/{method}", **fields)
        assert found == (code, f"etcdserver: {text}"), method
    for method in ("UserAdd", "RoleAdd"):
        assert (await refused(etcd, f"Auth/{method}", name="a"))[0] is Status.UNIMPLEMENTED

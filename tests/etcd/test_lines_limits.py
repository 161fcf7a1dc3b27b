"""Lines 25 to 28: compaction, limits, the texts of errors."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from nebuladb.pb.etcd import lock_pb2 as locks
from nebuladb.pb.etcd import maintenance_pb2 as maintenance
from tests.etcd.client import Client, Refused
from tests.etcd.test_lines_kv import COMPACTED, FUTURE, refused
from tests.etcd.test_lines_locks import campaign, lock
from tests.etcd.test_lines_txn import delete, put, read

MAX_REQUEST = 3 << 19
MAX_MESSAGE = MAX_REQUEST + (1 << 19)
CODELESS_NO_SPACE = "UNKNOWN etcdserver: mvcc: database space exceeded"
NO_SPACE = "RESOURCE_EXHAUSTED etcdserver: mvcc: database space exceeded"


@pytest.mark.etcd(25)
def test_compactions(client: Client, place: bytes) -> None:
    client.put(place, b"1")
    current = client.put(place, b"2").header.revision
    assert refused(lambda: client.compact(current + 1)) == FUTURE
    client.compact(current)  # `physical`
    for again in (current, current - 1, 0, -1):
        assert refused(lambda again=again: client.compact(again)) == COMPACTED  # type: ignore[misc]
    found = client.range(place, revision=current)
    assert found.kvs[0].value == b"2"
    assert found.header.revision == current, "it steps no revision"


@pytest.mark.etcd(26)
def test_large_requests(client: Client, place: bytes) -> None:
    client.put(place, bytes(MAX_REQUEST - 1024))
    text = "INVALID_ARGUMENT etcdserver: request is too large"
    too_large = bytes(MAX_REQUEST + 1024)
    assert refused(lambda: client.put(place, too_large)) == text
    assert refused(lambda: client.txn(success=[put(place, too_large)])) == text
    size = len(put(place, bytes(MAX_MESSAGE)).SerializeToString())
    beyond = f"RESOURCE_EXHAUSTED grpc: received message larger than max ({size} vs. {MAX_MESSAGE})"
    assert refused(lambda: client.put(place, bytes(MAX_MESSAGE))) == beyond
    lease = client.grant(600).ID
    for call in (
        lambda: lock(client, too_large, lease),
        lambda: campaign(client, place, lease, too_large),
        lambda: client.call("v3lockpb.Lock/Unlock", locks.UnlockRequest(key=too_large), locks.UnlockResponse),
    ):
        assert refused(call) == "UNKNOWN etcdserver: request is too large"
    client.revoke(lease)
    assert client.delete(place).deleted == 1


def alarm(client: Client, action: int, kind: int = maintenance.NOSPACE) -> list[int]:
    """The kinds of alarms that the answer lists."""
    request = maintenance.AlarmRequest(
        action=action,  # type: ignore[arg-type]
        memberID=client.status().header.member_id,
        alarm=kind,  # type: ignore[arg-type]
    )
    return [found.alarm for found in client.call("Maintenance/Alarm", request, maintenance.AlarmResponse).alarms]


@pytest.mark.etcd(27, 56)
def test_no_space(client: Client, place: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        client.put(place + name)
    lease = client.grant(600).ID
    assert alarm(client, maintenance.AlarmRequest.GET) == []
    assert alarm(client, maintenance.AlarmRequest.ACTIVATE) == [maintenance.NOSPACE]
    try:
        assert alarm(client, maintenance.AlarmRequest.GET) == [maintenance.NOSPACE]
        assert any("NOSPACE" in error for error in client.status().errors)
        assert refused(lambda: client.put(place + b"a")) == NO_SPACE
        assert refused(lambda: client.grant(60)) == NO_SPACE
        for named in (0, lease):
            assert refused(lambda named=named: lock(client, place, named)) == CODELESS_NO_SPACE  # type: ignore[misc]
            assert refused(lambda named=named: campaign(client, place, named, b"")) == CODELESS_NO_SPACE  # type: ignore[misc]
        growing = [put(place + b"d")]
        assert refused(lambda: client.txn(success=growing)) == NO_SPACE
        assert client.get(place + b"a") is not None
        assert client.delete(place + b"a").deleted == 1
        assert client.txn(success=[delete(place + b"b"), read(place)]).responses[0].response_delete_range.deleted == 1
        assert client.keep_alive(lease).TTL == 600
        client.revoke(lease)
        client.compact(client.revision())
    finally:
        assert alarm(client, maintenance.AlarmRequest.DEACTIVATE) == [maintenance.NOSPACE]
    assert alarm(client, maintenance.AlarmRequest.DEACTIVATE) == []
    assert alarm(client, maintenance.AlarmRequest.GET) == []
    client.put(place + b"a")


@pytest.mark.etcd(28)
def test_texts_are_exact(client: Client, place: bytes) -> None:
    """Each is asked for above, in the words of the list; here they are together, by code."""
    heard = {
        refused(call)
        for call in (
            lambda: client.range(b""),
            lambda: client.range(b"k", revision=1 << 60),
            lambda: client.compact(-1),
            lambda: client.put(place, lease=1 << 50),
            lambda: client.revoke(1 << 50),
            lambda: client.put(place, ignore_value=True),
            lambda: client.put(place, b"x", ignore_value=True),
            lambda: client.put(place, b"x", ignore_lease=True, lease=5),
            lambda: client.grant(9_000_000_001),
            lambda: client.txn(success=[put(place), put(place)]),
            lambda: client.txn(success=[put(place)] * 129),
        )
    }
    assert heard == {
        "INVALID_ARGUMENT etcdserver: key is not provided",
        "OUT_OF_RANGE etcdserver: mvcc: required revision is a future revision",
        "OUT_OF_RANGE etcdserver: mvcc: required revision has been compacted",
        "NOT_FOUND etcdserver: requested lease not found",
        "INVALID_ARGUMENT etcdserver: key not found",
        "INVALID_ARGUMENT etcdserver: value is provided",
        "INVALID_ARGUMENT etcdserver: lease is provided",
        "OUT_OF_RANGE etcdserver: too large lease TTL",
        "INVALID_ARGUMENT etcdserver: duplicate key given in txn request",
        "INVALID_ARGUMENT etcdserver: too many operations in txn request",
    }


def raw(client: Client, path: str, data: bytes, *, stream: bool = False) -> None:
    """A call of any path with any bytes."""
    channel = client.channel
    try:
        if stream:
            call: Any = channel.stream_stream(path)
            list(call(iter([data]), timeout=10))
        else:
            unary: Any = channel.unary_unary(path)
            unary(data, timeout=10)
    except grpc.RpcError as error:
        raise Refused(error) from None


@pytest.mark.etcd(28)
def test_what_the_transport_refuses(client: Client) -> None:
    for path, text in (
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/nope.Nothing/Range", "unknown service nope.Nothing"),
        ("/nope", 'malformed method name: "/nope"'),
        ("/a/b/c", "unknown service a/b"),
    ):
        assert refused(lambda path=path: raw(client, path, b"")) == f"UNIMPLEMENTED {text}"  # type: ignore[misc]
    wrong, large = b"\xff\xff", bytes(MAX_MESSAGE + 1)
    too_large = f"RESOURCE_EXHAUSTED grpc: received message larger than max ({MAX_MESSAGE + 1} vs. {MAX_MESSAGE})"
    for method in ("KV/Range", "Maintenance/Status", "Cluster/MemberList", "Auth/AuthStatus", "Lease/LeaseGrant"):
        path = f"/etcdserverpb.{method}"
        text = "INTERNAL grpc: error unmarshalling request: unexpected EOF"
        assert refused(lambda path=path: raw(client, path, wrong)) == text  # type: ignore[misc]
        assert refused(lambda path=path: raw(client, path, large)) == too_large  # type: ignore[misc]
    for method in ("Watch/Watch", "Lease/LeaseKeepAlive", "Maintenance/Snapshot"):
        path = f"/etcdserverpb.{method}"
        text = "INTERNAL grpc: failed to unmarshal the received message: unexpected EOF"
        assert refused(lambda path=path: raw(client, path, wrong, stream=True)) == text  # type: ignore[misc]
        assert refused(lambda path=path: raw(client, path, large, stream=True)) == too_large  # type: ignore[misc]

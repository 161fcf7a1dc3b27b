"""A keyspace of two shards: what a request names says which of them it is for, and what names both is refused."""

from __future__ import annotations

import threading
from typing import Any

import grpc.aio
import pytest

from nebuladb.api import backend, lease
from nebuladb.api.etcd.face import KEYSPACE_KEY
from nebuladb.client import AsyncClient
from nebuladb.errors import Reason
from nebuladb.ids import lease_group
from nebuladb.pb.etcd import kv_pb2 as etcd_pb2
from nebuladb.pb.nebula.v1 import common_pb2, kv_pb2, lease_pb2, session_pb2
from tests.unit.api.served import Served, error_detail
from tests.unit.node.lone import SECONDS

Op = kv_pb2.Operation
LOW, HIGH = b"a", b"z"
"""A key of each."""


@pytest.fixture
async def groups(served: Served) -> tuple[int, int]:
    """Of the shards of LOW and of HIGH."""
    async with AsyncClient([served.address], keyspace="k") as client:
        await client.create_keyspace("k", "range", split_at=[b"m"])
    low, high = (served.backend.route("k", key).group for key in (LOW, HIGH))
    return low, high


async def ask(served: Served, method: str, request: Any, response: Any) -> Any:
    request.keyspace = "k"
    call = served.channel.unary_unary(f"/nebula.v1.{method}", type(request).SerializeToString, response.FromString)
    return await call(request, timeout=SECONDS)


async def refused(served: Served, method: str, request: Any, response: Any) -> int:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, method, request, response)
    return error_detail(caught.value).reason


async def test_a_transaction_is_for_the_shard_of_all_its_keys(served: Served, groups: tuple[int, int]) -> None:
    def naming(key: bytes) -> list[kv_pb2.TxnRequest]:
        operations = [
            Op(put=kv_pb2.TxnPut(key=key)),
            Op(delete=kv_pb2.TxnDelete(key=key)),
            Op(range=kv_pb2.RangeRequest(key=key)),
            Op(txn=kv_pb2.NestedTxn(failure=[Op(put=kv_pb2.TxnPut(key=key))])),
        ]
        return [
            kv_pb2.TxnRequest(compare=[kv_pb2.Compare(key=key)]),
            *(kv_pb2.TxnRequest(success=[operation]) for operation in operations),
            *(kv_pb2.TxnRequest(failure=[operation]) for operation in operations),
        ]

    for request in naming(HIGH):
        answer = await ask(served, "KV/Txn", request, kv_pb2.TxnResponse)
        assert answer.header.group == groups[1]
        request.success.append(Op(put=kv_pb2.TxnPut(key=LOW)))
        assert await refused(served, "KV/Txn", request, kv_pb2.TxnResponse) == Reason.WRONG_SHARD


async def test_a_lease_is_in_the_shard_of_its_key_and_its_id_says_so(
    served: Served, groups: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = []
    for key, group in zip((LOW, HIGH), groups, strict=True):
        request = lease_pb2.LeaseGrantRequest(ttl=60, key=key)
        lease_id = (await ask(served, "Lease/Grant", request, lease_pb2.LeaseGrantResponse)).id
        assert lease_group(lease_id) == group
        kept = lease_pb2.LeaseKeepAliveRequest(id=lease_id)
        assert (await ask(served, "Lease/KeepAlive", kept, lease_pb2.LeaseKeepAliveResponse)).ttl == 60
        granted.append(lease_id)
    listed = await ask(served, "Lease/List", lease_pb2.LeaseListRequest(), lease_pb2.LeaseListResponse)
    assert list(listed.ids) == granted
    threads: list[int] = []
    add = lease._list

    def counted(*args: Any) -> None:
        threads.append(threading.get_ident())
        add(*args)

    with monkeypatch.context() as patch:  # of many others would hear nothing meanwhile
        patch.setattr(lease, "_list", counted)
        patch.setattr(backend, "MAX_LISTED_HERE", 0)
        assert listed == await ask(served, "Lease/List", lease_pb2.LeaseListRequest(), lease_pb2.LeaseListResponse)
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    for wrong in (-1, granted[0] + 1):
        request = lease_pb2.LeaseGrantRequest(ttl=60, key=HIGH, id=wrong)
        assert await refused(served, "Lease/Grant", request, lease_pb2.LeaseGrantResponse) == Reason.INVALID_ARGUMENT
    nobodys = lease_pb2.LeaseKeepAliveRequest(id=-1)
    assert await refused(served, "Lease/KeepAlive", nobodys, lease_pb2.LeaseKeepAliveResponse) == Reason.LEASE_NOT_FOUND


async def test_a_session_is_opened_in_the_shard_that_is_named_or_holds_the_key(
    served: Served, groups: tuple[int, int]
) -> None:
    for count in (1, 2):
        for key, group in zip((LOW, HIGH), groups, strict=True):
            by_key, by_id = session_pb2.SessionOpenRequest(key=key), session_pb2.SessionOpenRequest(group=group)
            request = by_key if count == 1 else by_id
            opened = await ask(served, "Session/Open", request, session_pb2.SessionOpenResponse)
            assert opened.group == opened.header.group == group
            assert opened.id
            assert served.pump.store(group).session_count == count
            write = kv_pb2.PutRequest(key=key, session=common_pb2.SessionRef(id=opened.id, sequence=1))
            await ask(served, "KV/Put", write, kv_pb2.PutResponse)


async def test_that_the_keyspace_is_divided_is_said_only_when_the_meta_group_agrees(
    served: Served, groups: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was away while it was dropped, and made anew with one shard, refused for good what any other did."""
    before = served.node.meta
    async with AsyncClient([served.address], keyspace="k") as client:
        await client.drop_keyspace("k")
        await client.create_keyspace("k", "single")
    now = served.node.meta

    async def refresh(timeout: float) -> None:
        served.node.meta = now

    monkeypatch.setattr(served.backend, "refresh", refresh)
    both = kv_pb2.TxnRequest(success=[Op(put=kv_pb2.TxnPut(key=key)) for key in (LOW, HIGH)])
    for method, request, response in (
        ("KV/Txn", both, kv_pb2.TxnResponse),
        ("KV/Delete", kv_pb2.DeleteRequest(key=LOW, range_end=HIGH), kv_pb2.DeleteResponse),
        ("Lease/Grant", lease_pb2.LeaseGrantRequest(ttl=60, key=LOW, id=4242), lease_pb2.LeaseGrantResponse),
        ("Lease/Grant", lease_pb2.LeaseGrantRequest(ttl=60, key=LOW, id=-1), lease_pb2.LeaseGrantResponse),
    ):
        served.node.meta = before
        assert (await ask(served, method, request, response)).header.group > groups[1]
    served.node.meta = before
    put = served.channel.unary_unary(
        "/etcdserverpb.KV/Put", etcd_pb2.PutRequest.SerializeToString, etcd_pb2.PutResponse.FromString
    )
    await put(etcd_pb2.PutRequest(key=HIGH), timeout=SECONDS, metadata=((KEYSPACE_KEY, "k"),))

"""Transactions that read ranges, many at once, and ranges that are sorted: the loop comes round between them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest

from nebuladb.api import backend, kv, pace
from nebuladb.api import lease as api_lease
from nebuladb.api.etcd import lease, ranges
from nebuladb.kv import selection, sorting
from nebuladb.kv.loans import Misses
from nebuladb.kv.pin import Pin
from nebuladb.kv.store import Store
from nebuladb.node.lessor import Lessor
from nebuladb.node.looks import Looks
from nebuladb.pb.etcd import election_pb2, lease_pb2
from nebuladb.pb.etcd import kv_pb2 as pb
from nebuladb.pb.nebula.v1 import lease_pb2 as nebula_lease_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import ask, begin
from tests.unit.api.turns import turns_of_calls


def sorts(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[int]:
    """How many items each sort of these modules has."""
    sizes: list[int] = []

    def noted(items: Iterable[Any], **options: Any) -> list[Any]:
        found = sorted(items, **options)
        sizes.append(len(found))
        return found

    for module in modules:
        monkeypatch.setattr(module, "sorted", noted, raising=False)
    return sizes


async def test_transactions_that_read_ranges_do_not_share_a_turn(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    await etcd.set(b"k")
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    reads = turns_of_calls(monkeypatch, Store, "read")
    request = pb.TxnRequest()
    request.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z"))
    await asyncio.gather(*(etcd.call("Txn", request) for _ in range(10)))
    assert len(set(reads)) == 10


@pytest.mark.parametrize(("keys", "revision"), [(kv.FEW_KEYS + 1, 0), (1, 2)])
async def test_transactions_that_read_many_keys_or_old_ones_do_not_share_a_turn(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch, keys: int, revision: int
) -> None:
    """Each may look at 8,192 keys, or at 50,000 versions, and one round confirms all that wait."""
    await etcd.set(b"k")
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    reads = turns_of_calls(monkeypatch, Store, "read")
    one = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", revision=revision))
    request = pb.TxnRequest(success=[one] * keys)
    answers = await asyncio.gather(*(etcd.call("Txn", request) for _ in range(10)))
    assert all(len(answer.responses) == keys for answer in answers)
    assert len(set(reads)) == 10


@pytest.mark.parametrize(
    ("target", "order"),
    [
        (pb.RangeRequest.KEY, range(59, -1, -1)),
        (pb.RangeRequest.MOD, range(60)),
        (pb.RangeRequest.VALUE, range(59, -1, -1)),
    ],
)
async def test_a_sorted_range_is_put_together_in_stretches(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch, target: pb.RangeRequest.SortTarget, order: range
) -> None:
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"k%02d" % n, value=b"v%02d" % n)) for n in range(60)]
    await etcd.call("Txn", pb.TxnRequest(success=puts))
    monkeypatch.setattr(ranges, "STRETCH_KEYS", 10)
    encoded = turns_of_calls(monkeypatch, ranges, "key_value")
    monkeypatch.setattr(sorting, "RUN", 10)
    at_once = sorts(monkeypatch, selection, sorting)
    found = await etcd.range(b"k", b"l", sort_order=pb.RangeRequest.DESCEND, sort_target=target, limit=55)
    assert [kv.key for kv in found.kvs] == [b"k%02d" % n for n in order[:55]]
    assert (found.more, found.count) == (True, 60)
    assert sorted(Counter(encoded).values()) == [5, 10, 10, 10, 10, 10]
    assert at_once == [10] * 6, "a sort keeps the interpreter's lock to its end, in a thread as well"


async def test_lists_of_many_leases_are_sorted_in_stretches(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million took two seconds."""
    monkeypatch.setattr(backend, "MAX_LISTED_HERE", 1)
    monkeypatch.setattr(sorting, "RUN", 10)
    for number in range(25):
        await ask(etcd, lease_pb2.LeaseGrantRequest(ID=100 - number, TTL=60 + number))
    at_once = sorts(monkeypatch, lease, api_lease, sorting)
    listed = await ask(etcd, lease_pb2.LeaseLeasesRequest())
    assert [one.ID for one in listed.leases] == list(range(100, 75, -1))
    assert at_once == [10, 10, 5]
    response = nebula_lease_pb2.LeaseListResponse()
    api_lease._list(response, dict.fromkeys((*range(100, 77, -1), -1, -2), (1, 1)))
    assert list(response.ids) == [*range(78, 101), -2, -1]
    assert at_once == [10, 10, 5] * 2


@pytest.mark.parametrize("many", [False, True])
async def test_lists_of_leases_do_not_share_a_turn_and_of_many_there_is_one_copy(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """60 requests at once, with 120,000 leases, kept the loop for eight seconds; and each had a copy of all."""
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    monkeypatch.setattr(backend, "MAX_LISTED_HERE", 1 if many else 1_000)
    await ask(etcd, lease_pb2.LeaseGrantRequest(ID=1, TTL=60))
    await ask(etcd, lease_pb2.LeaseGrantRequest(ID=2, TTL=60))
    copied = turns_of_calls(monkeypatch, Lessor, "leases")
    calls = [asyncio.ensure_future(begin(etcd, lease_pb2.LeaseLeasesRequest())) for _ in range(10)]
    calls[3].cancel()  # the others have it all the same
    answers = [await call for call in calls if call is not calls[3]]
    assert all({one.ID for one in answer.leases} == {1, 2} for answer in answers)
    assert len(set(copied)) == len(copied) >= 9


async def test_those_who_look_for_a_leader_do_not_share_a_turn(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 that observe kept the loop for a quarter of a second."""
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    await etcd.set(b"e/1")
    scans = turns_of_calls(monkeypatch, Pin, "scan")
    found = await asyncio.gather(*(ask(etcd, election_pb2.LeaderRequest(name=b"e")) for _ in range(10)))
    assert all(one.kv.key == b"e/1" for one in found)
    assert len(set(scans)) == 10


async def test_a_transaction_that_waits_for_the_disk_keeps_none_from_its_turn(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others that read ranges were refused until it had come, though what they read is in memory."""
    await etcd.set(b"k")
    read, look = Store.read, Looks.look
    waiting, come = asyncio.Event(), asyncio.Event()

    def cold(store: Store, *arguments: object) -> object:
        if not waiting.is_set():
            raise Misses((b"a row",))
        return read(store, *arguments)  # type: ignore[arg-type]

    async def slow(looks: Looks, *arguments: Any) -> object:
        waiting.set()
        await come.wait()
        return await look(looks, *arguments)

    monkeypatch.setattr(Store, "read", cold)
    monkeypatch.setattr(Looks, "look", slow)
    request = pb.TxnRequest()
    request.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z"))
    first = asyncio.create_task(etcd.call("Txn", request))
    await waiting.wait()
    assert (await etcd.call("Txn", request)).succeeded
    come.set()
    assert (await first).succeeded

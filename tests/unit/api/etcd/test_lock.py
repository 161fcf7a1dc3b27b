"""v3lockpb.Lock on one node: who waits, who owns, and what those who go leave behind."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from grpc import StatusCode

from nebuladb.api import pace
from nebuladb.api.etcd import line
from nebuladb.errors import UnknownOutcome
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.pin import Pin
from nebuladb.kv.store import Store
from nebuladb.kv.watcher import EventBatch
from nebuladb.pb.etcd import kv_pb2, lease_pb2
from nebuladb.pb.etcd import lock_pb2 as pb
from nebuladb.shard import Descriptor
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import GROUP, ask, begin, eventually, refused

EXPIRED = (StatusCode.UNKNOWN, "mutex: session is expired")


async def leases(etcd: Faced, *ids: int) -> None:
    for lease in ids:
        await ask(etcd, lease_pb2.LeaseGrantRequest(TTL=60, ID=lease))


def lock(lease: int, name: bytes = b"L") -> pb.LockRequest:
    return pb.LockRequest(name=name, lease=lease)


async def keys(etcd: Faced) -> list[bytes]:
    return [kv.key for kv in (await etcd.range(b"L/", b"L0")).kvs]


async def waiting(etcd: Faced, *ids: int) -> list[asyncio.Task[pb.LockResponse]]:
    """Calls that wait for the lock, entered in this order."""
    lines = etcd.api.face.lines
    tasks = []
    for lease in ids:
        before = len(lines)
        tasks.append(asyncio.create_task(ask(etcd, lock(lease))))
        await etcd.until(lambda before=before: len(lines) == before + 1)  # type: ignore[misc]
    return tasks


async def test_the_key_is_the_name_and_the_lease_and_who_holds_it_gets_it_again(etcd: Faced) -> None:
    """etcd 63."""
    await leases(etcd, 100)
    first = await ask(etcd, lock(100))
    assert first.key == b"L/64"
    kv = (await etcd.range(b"L/64")).kvs[0]
    assert (kv.create_revision, kv.lease, kv.value) == (first.header.revision, 100, b"")
    await etcd.set(b"k")
    again = await ask(etcd, lock(100))
    assert (again.key, again.header.revision) == (b"L/64", first.header.revision + 1)
    assert (await etcd.range(b"L/64")).kvs[0] == kv


async def test_it_goes_to_those_who_wait_in_their_order_and_the_fencing_token_rises(etcd: Faced) -> None:
    """etcd 63."""
    await leases(etcd, 1, 2, 3, 4)
    token = (await ask(etcd, lock(1))).header.revision
    tasks = await waiting(etcd, 3, 2, 4)
    holder = b"L/1"
    for number, owner in enumerate((b"L/3", b"L/2", b"L/4")):
        assert not any(task.done() for task in tasks[number:])
        await ask(etcd, pb.UnlockRequest(key=holder))
        response = await tasks[number]
        assert response.key == owner
        assert response.header.revision > token
        token, holder = response.header.revision, owner
    assert len(etcd.node.groups[GROUP].hub) == 0


async def test_the_token_of_who_finds_it_free_is_above_those_of_who_had_it_since_its_entry(etcd: Faced) -> None:
    """Before it looks others may own it, be told so by a revision above that of its entry, and leave it."""
    await leases(etcd, 1)
    await etcd.set(b"L/earlier")
    shard = etcd.backend.routing.shards("etcd")[0]
    async with etcd.api.face.lines.reading(shard, b"L"):
        task = asyncio.create_task(ask(etcd, lock(1)))

        async def entered() -> bool:
            return await keys(etcd) == [b"L/1", b"L/earlier"]

        await eventually(entered)
        told = (await etcd.range(b"L/earlier")).header.revision
        gone = await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"L/earlier"))
    assert (await task).header.revision >= gone.header.revision > told


class Reads:
    """Counts the keys that stores and their pins read of ranges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys = 0
        for kind, name in ((Store, "range"), (Pin, "scan")):
            monkeypatch.setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, read: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            found = read(*arguments, **options)
            self.keys += len(found.kvs)
            return found

        return counting


async def test_a_release_costs_the_same_however_many_wait(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was n: a hundred that wait read five thousand entries until the last had it."""
    count = 100
    await leases(etcd, *range(1, count + 1))
    await ask(etcd, lock(1))
    reads = Reads(monkeypatch)
    tasks = await waiting(etcd, *range(2, count + 1))
    assert len(etcd.node.groups[GROUP].hub) == 1, "one watch for all of them"
    for holder in range(1, count):
        await ask(etcd, pb.UnlockRequest(key=b"L/%x" % holder))
        await tasks[holder - 1]
    assert reads.keys <= 3 * count
    assert (len(etcd.api.face.lines), len(etcd.node.groups[GROUP].hub)) == (0, 0)


async def test_who_holds_it_gets_it_again_while_others_wait(etcd: Faced) -> None:
    await leases(etcd, 1, 2)
    first = await ask(etcd, lock(1))
    (second,) = await waiting(etcd, 2)
    again = await ask(etcd, lock(1))
    assert (again.key, again.header.revision) == (first.key, first.header.revision + 1)
    assert len(etcd.api.face.lines) == 1
    assert not second.done()
    await ask(etcd, pb.UnlockRequest(key=first.key))
    await second


async def test_those_whose_watch_loses_its_history_go_on_waiting(etcd: Faced) -> None:
    await leases(etcd, 1, 2, 3)
    await ask(etcd, lock(1))
    second, third = await waiting(etcd, 2, 3)
    hub = etcd.node.groups[GROUP].hub
    [watcher] = hub._live
    hub.remove(watcher)
    watcher.cancel(5)
    await etcd.until(lambda: len(hub) == 1 and watcher not in hub._live)
    assert not second.done()
    assert not third.done()
    await ask(etcd, pb.UnlockRequest(key=b"L/1"))
    assert (await second).key == b"L/2"
    assert not third.done()
    await ask(etcd, pb.UnlockRequest(key=b"L/2"))
    await third


async def test_of_many_that_wait_one_reads_the_line_anew(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand that did were a million rows, and had a pin each: who found none left lost its place."""
    monkeypatch.setattr(line, "FEW_ENTRIES", 2)
    many = range(2, 22)
    await leases(etcd, 1, *many)
    await ask(etcd, lock(1))
    tasks = await waiting(etcd, *many)
    hub = etcd.node.groups[GROUP].hub
    [watcher] = hub._live
    reads = Reads(monkeypatch)
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)  # each stretch waits for the one before
    hub.remove(watcher)
    watcher.cancel(5)
    await etcd.until(lambda: len(hub) == 1 and watcher not in hub._live and len(etcd.api.face.lines) == len(many))
    assert reads.keys == 1 + len(many)
    assert not any(task.done() for task in tasks)
    await ask(etcd, pb.UnlockRequest(key=b"L/1"))
    assert (await tasks[0]).key == b"L/2"
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_more_news_at_once_than_a_watch_keeps_is_taken_from_history(etcd: Faced) -> None:
    await leases(etcd, 1, 2, 3)
    await ask(etcd, lock(1))
    (second,) = await waiting(etcd, 2)
    puts = [kv_pb2.RequestOp(request_put=kv_pb2.PutRequest(key=b"L/x%05d" % number)) for number in range(1_200)]
    txns = [kv_pb2.TxnRequest(success=puts[first : first + 120]) for first in range(0, len(puts), 120)]
    hub = etcd.node.groups[GROUP].hub
    [watcher] = hub._live
    watcher._events_limit = 8
    fell: list[EventBatch] = []
    deliver = watcher.deliver

    def counted(batch: EventBatch, sub: int = 0) -> bool:
        delivered = deliver(batch, sub)
        if not delivered:
            fell.append(batch)
        return delivered

    watcher.deliver = counted  # type: ignore[method-assign]
    await asyncio.gather(*(etcd.call("Txn", txn) for txn in txns))
    assert fell
    (third,) = await waiting(etcd, 3)
    await ask(etcd, pb.UnlockRequest(key=b"L/1"))
    await second
    await ask(etcd, pb.UnlockRequest(key=b"L/2"))
    assert not third.done(), "keys that others made came before it"
    await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"L/x", range_end=b"L/y"))
    await third


async def test_a_key_made_anew_under_the_same_name_is_another_entry(etcd: Faced) -> None:
    """Of the owner: it goes to the end. Of one that waits: its session has expired."""
    await leases(etcd, 1, 2, 3)
    await ask(etcd, lock(1))
    second, third = await waiting(etcd, 2, 3)
    for key in (b"L/1", b"L/3"):
        delete = kv_pb2.RequestOp(request_delete_range=kv_pb2.DeleteRangeRequest(key=key))
        put = kv_pb2.RequestOp(request_put=kv_pb2.PutRequest(key=key))
        await etcd.call("Txn", kv_pb2.TxnRequest(success=[delete]))
        await etcd.call("Txn", kv_pb2.TxnRequest(success=[put]))
    assert (await second).key == b"L/2"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await third
    assert (caught.value.code(), caught.value.details()) == EXPIRED
    assert await keys(etcd) == [b"L/1", b"L/2", b"L/3"], "what others made stays"


async def test_who_waits_behind_one_that_goes_still_waits_for_the_owner(etcd: Faced) -> None:
    await leases(etcd, 1, 2, 3)
    await ask(etcd, lock(1))
    second, third = await waiting(etcd, 2, 3)
    await ask(etcd, lease_pb2.LeaseRevokeRequest(ID=2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second
    assert (caught.value.code(), caught.value.details()) == EXPIRED
    await etcd.until(lambda: len(etcd.api.face.lines) == 1)
    assert not third.done()
    await ask(etcd, pb.UnlockRequest(key=b"L/1"))
    assert (await third).key == b"L/3"


async def test_who_takes_its_call_back_leaves_no_key(etcd: Faced) -> None:
    await leases(etcd, 1, 2, 3)
    await ask(etcd, lock(1))
    call = begin(etcd, lock(2))
    await etcd.until(lambda: len(etcd.api.face.lines) == 1)
    assert await keys(etcd) == [b"L/1", b"L/2"]
    call.cancel()

    async def alone() -> bool:
        return await keys(etcd) == [b"L/1"]

    await eventually(alone)
    (third,) = await waiting(etcd, 3)
    await ask(etcd, pb.UnlockRequest(key=b"L/1"))
    await third


async def test_a_call_taken_back_before_its_entry_is_made_leaves_none(etcd: Faced) -> None:
    await leases(etcd, 1)
    call = begin(etcd, lock(1))
    proposed = etcd.pump._writes
    await etcd.until(lambda: bool(proposed))
    call.cancel()
    store = etcd.node.groups[GROUP].store
    before = store.revision

    async def made_and_gone() -> bool:
        return store.revision > before and not await keys(etcd)

    await eventually(made_and_gone)


async def test_without_a_lease_one_of_a_minute_is_made_and_goes_with_the_call(etcd: Faced) -> None:
    held = await ask(etcd, lock(0))
    lease = int(held.key.removeprefix(b"L/"), 16)
    told = await ask(etcd, lease_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True))
    assert (told.grantedTTL, list(told.keys)) == (60, [held.key])
    call = begin(etcd, lock(0))
    await etcd.until(lambda: len(etcd.api.face.lines) == 1)
    assert len((await ask(etcd, lease_pb2.LeaseLeasesRequest())).leases) == 2
    call.cancel()

    async def one_left() -> bool:
        return len((await ask(etcd, lease_pb2.LeaseLeasesRequest())).leases) == 1

    await eventually(one_left)
    assert await keys(etcd) == [held.key]


async def test_a_lease_made_for_a_call_that_is_taken_back_meanwhile_ends(etcd: Faced) -> None:
    """Nobody else will ever know it: a client that gives up again and again would leave one each time."""
    call = begin(etcd, lock(0))
    await etcd.until(lambda: bool(etcd.pump._writes))
    call.cancel()
    store = etcd.node.groups[GROUP].store
    before = store.index
    # The grant, and what takes it back: two entries.
    await etcd.until(lambda: store.index >= before + 2)
    assert list(store.leases()) == []


async def test_refusals_have_the_words_of_etcds_client(etcd: Faced) -> None:
    assert await refused(etcd, lock(999)) == (StatusCode.UNKNOWN, "etcdserver: requested lease not found")
    assert await refused(etcd, pb.UnlockRequest()) == (StatusCode.UNKNOWN, "etcdserver: key is not provided")
    nothing = await ask(etcd, pb.UnlockRequest(key=b"nothing"))
    assert nothing.header.revision > 0
    await leases(etcd, 1)
    assert (await ask(etcd, lock(1, b""))).key == b"/1"


async def test_an_entry_that_may_have_been_made_for_nobody_is_taken_back(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease was granted for the call, whose caller never hears of it: the lock would be nobody's for a minute."""
    backend = etcd.backend
    propose = backend.propose

    async def lose(shard: Descriptor, command: Command, timeout: float) -> Answer:
        answer = await propose(shard, command, timeout)
        if command.kind == Kind.TXN:
            monkeypatch.setattr(backend, "propose", propose)
            raise UnknownOutcome
        return answer

    monkeypatch.setattr(backend, "propose", lose)
    assert (await refused(etcd, lock(0)))[0] is StatusCode.UNAVAILABLE
    await etcd.until(lambda: not list(etcd.pump.store(GROUP).leases()))
    assert await keys(etcd) == []


async def test_an_entry_that_may_have_been_made_for_a_call_that_was_taken_back_is_taken_back_too(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = etcd.backend
    propose = backend.propose
    made, gone = asyncio.Event(), asyncio.Event()

    async def lose(shard: Descriptor, command: Command, timeout: float) -> Answer:
        answer = await propose(shard, command, timeout)
        if command.kind == Kind.TXN:
            monkeypatch.setattr(backend, "propose", propose)
            made.set()
            await gone.wait()
            raise UnknownOutcome
        return answer

    monkeypatch.setattr(backend, "propose", lose)
    call = begin(etcd, lock(0))
    await made.wait()
    assert len(await keys(etcd)) == 1
    call.cancel()
    gone.set()
    await etcd.until(lambda: not list(etcd.pump.store(GROUP).leases()))
    assert await keys(etcd) == []

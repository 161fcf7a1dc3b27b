"""etcdserverpb.Lease on one node: the numbered lines are those of what an etcd server must get right."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from grpc import StatusCode

from nebuladb.api import backend, leadership
from nebuladb.api.etcd import lease
from nebuladb.errors import NoLeader, NotLeader, Unavailable, UnknownOutcome
from nebuladb.kv.answer import Answer
from nebuladb.kv.attached import Attached
from nebuladb.pb.etcd import kv_pb2
from nebuladb.pb.etcd import lease_pb2 as pb
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import ask, create, keeping, lose_leader, refused, watching

NOT_FOUND = (StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


async def grant(etcd: Faced, ttl: int, lease_id: int = 0) -> pb.LeaseGrantResponse:
    return await ask(etcd, pb.LeaseGrantRequest(TTL=ttl, ID=lease_id))  # type: ignore[no-any-return]


async def left(etcd: Faced, lease_id: int, *, keys: bool = False) -> pb.LeaseTimeToLiveResponse:
    return await ask(etcd, pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys))  # type: ignore[no-any-return]


async def pass_time(etcd: Faced, milliseconds: int) -> None:
    """On the clock of leases, which an entry carries to the state machine."""
    etcd.clock.time += milliseconds
    etcd.node.tick(etcd.clock.time, etcd.clock.time)
    etcd.pump.wake()
    await etcd.set(b"time")


async def test_a_grant_picks_an_id_and_lifts_the_ttl(etcd: Faced) -> None:
    """etcd 46, 58."""
    granted = [await grant(etcd, ttl) for ttl in (0, -5, 1, 2, 3)]
    assert [response.TTL for response in granted] == [2, 2, 2, 2, 3]
    assert all(response.ID > 0 for response in granted)
    assert len({response.ID for response in granted}) == len(granted)
    assert granted[0].header == (await etcd.range(b"k")).header
    assert (await grant(etcd, 9_000_000_000)).TTL == 9_000_000_000


async def test_a_grant_is_refused_for_an_id_that_exists_and_a_ttl_that_is_too_long(etcd: Faced) -> None:
    """etcd 46."""
    assert (await grant(etcd, 60, 77)).ID == 77
    exists = (StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")
    too_long = (StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL")
    assert await refused(etcd, pb.LeaseGrantRequest(TTL=60, ID=77)) == exists
    assert await refused(etcd, pb.LeaseGrantRequest(TTL=9_000_000_001)) == too_long
    assert await refused(etcd, pb.LeaseGrantRequest(TTL=9_000_000_001, ID=77)) == too_long


async def test_a_client_may_choose_a_negative_id(etcd: Faced) -> None:
    """As in etcd, which takes any number but 0."""
    least, last = -(1 << 63), (1 << 63) - 1
    for lease_id in (-1, least, last):
        assert lease_id == (await grant(etcd, 60, lease_id)).ID
        assert (await refused(etcd, pb.LeaseGrantRequest(TTL=60, ID=lease_id)))[0] is StatusCode.FAILED_PRECONDITION
        await etcd.set(b"n%d" % lease_id, lease=lease_id)
        assert (await etcd.range(b"n%d" % lease_id)).kvs[0].lease == lease_id
        assert (await left(etcd, lease_id, keys=True)).keys == [b"n%d" % lease_id]
    assert {status.ID for status in (await ask(etcd, pb.LeaseLeasesRequest())).leases} == {-1, least, last}
    await ask(etcd, pb.LeaseRevokeRequest(ID=last))
    assert (await etcd.range(b"n", b"o")).count == 2
    await pass_time(etcd, 61_000)
    async with asyncio.timeout(10):
        while (await etcd.range(b"n", b"o")).count:
            await pass_time(etcd, 50)


async def test_keep_alives_are_answered_in_order_and_an_unknown_lease_has_no_time(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 47."""
    monkeypatch.setattr(lease, "MAX_KEEP_ALIVES", 2)  # more wait to be read
    await grant(etcd, 60, 7)
    await grant(etcd, 30, 8)
    await pass_time(etcd, 20_000)
    async with keeping(etcd) as stream:
        asked = [7, 5, 8, 7, 0, -1, 8]
        stream.send(*(pb.LeaseKeepAliveRequest(ID=one) for one in asked), None)
        responses = [await stream.next() for _ in asked]
        assert (await stream.end())[0] is StatusCode.OK
    assert [response.ID for response in responses] == asked
    assert [response.TTL for response in responses] == [60, 0, 30, 60, 0, 0, 30]
    assert responses[0].header == (await etcd.range(b"k")).header
    assert [(await left(etcd, one)).TTL for one in (7, 8)] == [59, 29]


async def test_a_keep_alive_that_a_change_of_leader_swallows_is_tried_again(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 29, 47."""
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.001)
    await grant(etcd, 60, 7)
    propose, errors = etcd.backend.propose, [UnknownOutcome(), NotLeader(), NoLeader()]

    async def fails_at_first(*arguments: Any) -> Answer:
        if errors:
            raise errors.pop(0)
        return await propose(*arguments)

    monkeypatch.setattr(etcd.backend, "propose", fails_at_first)
    async with keeping(etcd) as stream:
        stream.send(pb.LeaseKeepAliveRequest(ID=7))
        assert (await stream.next()).TTL == 60
    assert not errors


async def test_a_keep_alive_that_this_node_can_not_take_sends_its_client_to_another_one(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tried here for seven seconds, while a snapshot came in or the disk was full: short leases ended."""
    await grant(etcd, 60, 7)
    tried = 0

    async def can_not(*arguments: Any) -> Answer:
        nonlocal tried
        tried += 1
        raise Unavailable("this node waits for a snapshot of shard 3: nothing was done; ask another node")

    monkeypatch.setattr(etcd.backend, "propose", can_not)
    async with keeping(etcd) as stream:
        stream.send(pb.LeaseKeepAliveRequest(ID=7))
        code, text = await stream.end()
    assert (code, tried) == (StatusCode.UNAVAILABLE, 1)
    assert "ask another node" in text


async def test_what_is_left_counts_down_and_is_less_than_nothing_of_an_unknown_lease(etcd: Faced) -> None:
    """etcd 48."""
    await grant(etcd, 60, 7)
    for key in (b"b", b"a"):
        await etcd.set(key, lease=7)
    told = await left(etcd, 7, keys=True)
    assert (told.ID, told.TTL, told.grantedTTL, list(told.keys)) == (7, 59, 60, [b"a", b"b"])
    assert not (await left(etcd, 7)).keys
    await pass_time(etcd, 9_500)
    assert (await left(etcd, 7)).TTL == 50
    for unknown in (0, -9, 12345):
        told = await left(etcd, unknown, keys=True)
        assert (told.ID, told.TTL, told.grantedTTL) == (unknown, -1, 0)
        assert told.header.revision > 0


async def test_the_keys_of_a_lease_are_read_and_told_beside_the_loop(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a million, for which nobody else was served; they are those of the revision that is named."""
    monkeypatch.setattr(backend, "MAX_LISTED_HERE", 1)
    await grant(etcd, 60, 7)
    for key in (b"b", b"a"):
        put = await etcd.set(key, lease=7)
    begun, go_on, read = threading.Event(), threading.Event(), Attached.read

    def late(self: Attached) -> Iterator[bytes]:
        begun.set()
        assert go_on.wait(10)
        return read(self)

    closed = list[Attached]()
    monkeypatch.setattr(Attached, "read", late)
    monkeypatch.setattr(Attached, "close", lambda self: closed.append(self))
    asked = asyncio.ensure_future(left(etcd, 7, keys=True))
    await asyncio.to_thread(begun.wait, 10)
    await etcd.set(b"c", lease=7)  # others are served meanwhile
    go_on.set()
    told = await asked
    assert list(told.keys) == [b"a", b"b"]
    assert told.header.revision == put.header.revision
    assert len(closed) == 1
    assert (await left(etcd, 7, keys=True)).keys == [b"a", b"b", b"c"]


async def test_a_leases_keys_are_told_whole_or_refused(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were all held, twice, before an answer of hundreds of MiB was refused."""
    monkeypatch.setattr(backend, "KEYS_AT_ONCE", 2)
    monkeypatch.setattr(backend, "MAX_KEYS_BYTES", 40)
    await grant(etcd, 60, 7)
    keys = [b"%d" % number * 6 for number in range(5)]  # 8 bytes each, as they are encoded
    for key in keys:
        await etcd.set(key, lease=7)
    assert (await left(etcd, 7, keys=True)).keys == keys
    await etcd.set(b"5", lease=7)
    assert await refused(etcd, pb.LeaseTimeToLiveRequest(ID=7, keys=True)) == (
        StatusCode.RESOURCE_EXHAUSTED,
        "the lease's keys have more than 0 MiB; ask without them",
    )
    assert (await left(etcd, 7)).grantedTTL == 60


async def test_the_keys_of_one_lease_are_read_at_a_time_though_who_asked_has_gone(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grant(etcd, 60, 7)
    await etcd.set(b"a", lease=7)
    begun, go_on, read = threading.Event(), threading.Event(), Attached.read

    def late(self: Attached) -> Iterator[bytes]:
        begun.set()
        assert go_on.wait(10)
        return read(self)

    monkeypatch.setattr(Attached, "read", late)
    asked = asyncio.ensure_future(left(etcd, 7, keys=True))
    await asyncio.to_thread(begun.wait, 10)
    asked.cancel()
    with suppress(asyncio.CancelledError):
        await asked
    await etcd.set(b"b", lease=7)
    assert etcd.backend.listing.locked()
    go_on.set()
    assert (await left(etcd, 7, keys=True)).keys == [b"a", b"b"]


async def test_a_revoke_deletes_the_keys_sorted_in_one_revision(etcd: Faced) -> None:
    """etcd 49."""
    await grant(etcd, 60, 7)
    for key in (b"w/b", b"w/c", b"w/a"):
        await etcd.set(key, lease=7)
    before = await etcd.set(b"w/d")
    async with watching(etcd) as stream:
        stream.send(create(b"w/", b"w0"))
        assert (await stream.next()).created
        revoked = await ask(etcd, pb.LeaseRevokeRequest(ID=7))
        assert revoked.header.revision == before.header.revision + 1
        told = await stream.next()
    assert [(event.kv.key, event.kv.mod_revision) for event in told.events] == [
        (key, revoked.header.revision) for key in (b"w/a", b"w/b", b"w/c")
    ]
    for unknown in (7, 0, -9):
        assert await refused(etcd, pb.LeaseRevokeRequest(ID=unknown)) == NOT_FOUND
    assert await etcd.refused("Put", kv_pb2.PutRequest(key=b"k", lease=7)) == NOT_FOUND


async def test_the_list_has_ids_those_that_end_first_first(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd 50."""
    assert not (await ask(etcd, pb.LeaseLeasesRequest())).leases
    for lease_id, ttl in ((3, 60), (1, 30), (2, 90), (4, 30)):
        await grant(etcd, ttl, lease_id)
    listed = await ask(etcd, pb.LeaseLeasesRequest())
    assert [status.ID for status in listed.leases] == [1, 4, 3, 2]
    assert listed.header == (await etcd.range(b"k")).header
    monkeypatch.setattr(backend, "MAX_LISTED_HERE", 1)
    assert await ask(etcd, pb.LeaseLeasesRequest()) == listed


async def test_an_expired_lease_takes_its_keys(etcd: Faced) -> None:
    """etcd 49."""
    await grant(etcd, 5, 7)
    await etcd.set(b"k", lease=7)
    await pass_time(etcd, 4_900)
    assert (await etcd.range(b"k")).count == 1
    await pass_time(etcd, 200)
    async with asyncio.timeout(10):
        while (await etcd.range(b"k")).count:
            await pass_time(etcd, 50)
    assert (await left(etcd, 7)).TTL == -1


async def test_without_a_leader_nothing_but_unavailable_is_said(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd 29, 30, 44."""
    monkeypatch.setattr(leadership, "CHECK_SECONDS", 0.01)
    no_leader = (StatusCode.UNAVAILABLE, "etcdserver: no leader")
    await grant(etcd, 60, 7)
    wants = (("hasleader", "true"),)
    async with keeping(etcd, wants) as stream, keeping(etcd) as other:
        for one in (stream, other):
            one.send(pb.LeaseKeepAliveRequest(ID=7))
            assert (await one.next()).TTL == 60
        lose_leader(etcd)
        assert await stream.end() == no_leader
        assert await refused(etcd, pb.LeaseGrantRequest(TTL=60), metadata=wants) == no_leader
        other.send(pb.LeaseKeepAliveRequest(ID=7))
        waiting = asyncio.create_task(other.end())
        while not waiting.done():
            etcd.node.host.step_down(3)
            etcd.clock.time += 50
            etcd.node.tick(etcd.clock.time, etcd.clock.time)
            etcd.pump.wake()
            await asyncio.sleep(0)
        assert waiting.result()[0] is StatusCode.UNAVAILABLE

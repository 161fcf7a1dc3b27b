"""Scan and watch over any breaks, against the plain truth; and a lease's keeper on a clock of its own."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb import errors
from nebuladb.client import AsyncClient, LeaseKeeper, prefix_end
from nebuladb.client.errors import Failure
from nebuladb.client.scan import ScanPlan
from nebuladb.client.watch import WatchPlan
from nebuladb.pb.nebula.v1 import kv_pb2, lease_pb2
from tests.unit.client.fake import Fault, Node
from tests.unit.client.fake_store import Store


@settings(deadline=None, max_examples=60)
@given(
    keys=st.sets(st.binary(min_size=1, max_size=2), max_size=12),
    limit=st.integers(0, 14),
    page=st.integers(1, 5),
    breaks=st.lists(st.integers(0, 4), max_size=6),
)
def test_a_scan_over_any_breaks_is_the_scan_without(keys: set[bytes], limit: int, page: int, breaks: list[int]) -> None:
    store = Store()
    for key in sorted(keys):
        store.step(lambda key=key: store.put(key, b"old", 0))  # type: ignore[misc]
    plan = ScanPlan(kv_pb2.ScanRequest(limit=limit, page_size=page))
    seen: list[tuple[bytes, bytes]] = []
    cuts = iter(breaks)
    whole = False
    while not (whole or plan.done):
        pages = list(store.scan(plan.request))
        cut = next(cuts, len(pages))
        for response in pages[:cut]:
            if not plan.done:
                seen += [(kv.key, kv.value) for kv in plan.absorb(response)]
        whole = cut >= len(pages)
        if plan.request.revisions:  # a page was seen, so that what comes now belongs to the future
            store.step(lambda: store.put(b"\xff\xff", b"later", 0))
        plan.resume()
    expected = [(key, b"old") for key in sorted(keys)]
    assert seen == (expected[:limit] if limit else expected)


def test_a_scan_over_several_shards_goes_on_at_each_shards_revision() -> None:
    plan = ScanPlan(kv_pb2.ScanRequest())
    page = kv_pb2.ScanResponse(kvs=[_kv(4, b"a")])
    page.revisions.add(group=2, revision=5)
    page.revisions.add(group=3, revision=9)
    plan.absorb(page)
    plan.resume()
    assert plan.request.key == b"a\0"
    assert [(pair.group, pair.revision) for pair in plan.request.revisions] == [(2, 5), (3, 9)]


def test_a_watch_over_several_shards_keeps_each_shards_place() -> None:
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"\0", range_end=b"\0"))
    for group, revision in ((2, 7), (3, 4)):
        created = _created(revision)
        created.header.group = group
        plan.absorb(created)
    response = kv_pb2.WatchResponse()
    response.header.group = 3
    response.events.add().kv.MergeFrom(_kv(5, b"a"))
    found = plan.absorb(response)
    assert not isinstance(found, Failure)
    assert [(event.group, event.kv.mod_revision) for event in found] == [(3, 5)]
    assert (next_revision(plan, 2), next_revision(plan, 3)) == (8, 6)


def test_what_a_watch_is_told_of_one_shard_costs_the_others_nothing() -> None:
    """The list of all starts was made anew with each response: a thousand shards took a million steps to begin."""
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"\0", range_end=b"\0"))
    inner = plan.request
    for group in range(2, 1_026):
        created = _created(group)
        created.header.group = group
        plan.absorb(created)
        assert not inner.start_revisions
    assert plan.request is inner
    assert [(pair.group, pair.revision) for pair in inner.start_revisions] == [(g, g + 1) for g in range(2, 1_026)]
    assert plan.request is inner
    assert len(inner.start_revisions) == 1_024


def test_a_break_before_every_shard_began_forgets_no_shards_start() -> None:
    starts = [kv_pb2.ShardRevision(group=2, revision=5), kv_pb2.ShardRevision(group=3, revision=6)]
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"k", start_revisions=starts))
    created = _created(9)
    created.header.group = 2
    plan.absorb(created)
    assert (next_revision(plan, 2), next_revision(plan, 3)) == (5, 6)


@settings(deadline=None, max_examples=60)
@given(
    changes=st.lists(st.integers(1, 3), min_size=1, max_size=10),
    start=st.integers(0, 6),
    cuts=st.lists(st.integers(0, 4), max_size=8),
    replay=st.integers(0, 2),
)
def test_a_watch_over_any_breaks_yields_every_event_once(
    changes: list[int], start: int, cuts: list[int], replay: int
) -> None:
    """`replay`: the server begins so many revisions too early, which must do no harm."""
    history = [(revision, count) for revision, count in enumerate(changes, 2)]
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"k", start_revision=start))
    seen: list[tuple[int, bytes]] = []
    breaks = iter(cuts)
    plan.absorb(_created(1))
    first = next_revision(plan)
    while next_revision(plan) < len(changes) + 2:
        responses = [_created(1)]
        for revision, count in history:
            if revision >= next_revision(plan) - replay:
                response = kv_pb2.WatchResponse()
                response.header.revision = len(changes) + 1
                for number in range(count):
                    response.events.add().kv.MergeFrom(_kv(revision, b"%d" % number))
                responses.append(response)
        for response in responses[: next(breaks, 99) + 1]:
            found = plan.absorb(response)
            assert not isinstance(found, Failure)
            seen += [(event.kv.mod_revision, event.kv.key) for event in found]
    expected = [(revision, b"%d" % n) for revision, count in history if revision >= first for n in range(count)]
    assert seen == expected


def next_revision(plan: WatchPlan, group: int = 0) -> int:
    return {pair.group: pair.revision for pair in plan.request.start_revisions}[group]


def _created(revision: int) -> kv_pb2.WatchResponse:
    response = kv_pb2.WatchResponse(created=True)
    response.header.revision = revision
    return response


def _kv(revision: int, key: bytes) -> kv_pb2.common__pb2.KeyValue:  # type: ignore[name-defined]
    event = kv_pb2.Event()
    event.kv.key, event.kv.mod_revision = key, revision
    return event.kv


def test_a_watch_from_now_on_begins_after_its_creation() -> None:
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"k"))
    plan.absorb(_created(7))
    assert next_revision(plan) == 8
    plan.absorb(_created(9))  # on another node, after a break: it goes on from 8
    assert next_revision(plan) == 8
    progress = kv_pb2.WatchResponse()
    progress.header.revision = 20
    plan.absorb(progress)
    assert next_revision(plan) == 21


def test_a_revision_in_fragments_is_told_once_and_whole_also_over_a_break() -> None:
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"k", start_revision=3))
    plan.absorb(_created(2))
    parts = [kv_pb2.WatchResponse(fragment=number < 2) for number in range(3)]
    for number, part in enumerate(parts):
        part.events.add().kv.MergeFrom(_kv(5, b"%d" % number))
    assert plan.absorb(parts[0]) == []
    assert next_revision(plan) == 3
    plan.absorb(_created(9))  # the link broke, and the revision is sent again from its beginning
    told = [plan.absorb(part) for part in parts]
    assert told[:2] == [[], []]
    assert not isinstance(told[2], Failure)
    assert [event.kv.key for event in told[2]] == [b"0", b"1", b"2"]
    assert next_revision(plan) == 6


def test_a_watch_that_the_server_ends() -> None:
    plan = WatchPlan(kv_pb2.WatchRequest(key=b"k", start_revision=3))
    ended = plan.absorb(kv_pb2.WatchResponse(canceled=True, cancel_reason="draining"))
    assert isinstance(ended, Failure)
    assert ended.retryable
    with pytest.raises(errors.Compacted, match="oldest revision: 9"):
        plan.absorb(kv_pb2.WatchResponse(canceled=True, compact_revision=9))


@settings(deadline=None)
@given(st.binary(max_size=3), st.binary(max_size=4))
def test_prefix_end(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    assert key.startswith(prefix) == (key >= prefix and (end == b"\0" or key < end))


class Time:
    """A clock that goes on when the client sleeps, and sleeps that end when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asleep: asyncio.Queue[tuple[float, asyncio.Future[None]]] = asyncio.Queue()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if seconds:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.asleep.put_nowait((seconds, done))
            await done

    async def wake(self, after: float | None = None) -> float:
        seconds, done = await self.asleep.get()
        self.now += seconds if after is None else after
        done.set_result(None)
        return seconds


async def test_a_lease_is_kept_alive_until_it_is_lost(node: Node) -> None:
    time = Time()
    async with AsyncClient([node.address], clock=time.clock, sleep=time.sleep) as client:
        lease = await client.grant_lease(9)
        async with client.keep_alive(lease.id) as keeper:
            for _ in range(5):
                assert await time.wake() == 3.0
            assert keeper.held
            keeper.check()
            _, done = await time.asleep.get()  # no renewal is under way
            del node.store.leases[lease.id]
            done.set_result(None)
            await keeper.lost.wait()
            with pytest.raises(errors.LeaseNotFound):
                keeper.check()
        with pytest.raises(errors.LeaseNotFound):
            async with client.keep_alive(lease.id):
                pass


@pytest.mark.parametrize("error", [errors.KeyspaceNotFound(), errors.WrongShard(), errors.LeaseNotFound()])
async def test_a_lease_is_lost_with_its_keyspace(node: Node, error: errors.NebulaError) -> None:
    """Also if there is another of that name since; other errors are passed over, for the rest of the TTL."""
    time = Time()
    async with AsyncClient([node.address], clock=time.clock, sleep=time.sleep) as client:
        lease = await client.grant_lease(9)
        async with client.keep_alive(lease.id) as keeper:
            node.faults.append(Fault("KeepAlive", errors.NebulaError("it stumbled")))
            await time.wake()
            assert await time.wake() == 3.0
            assert keeper.held
            _, done = await time.asleep.get()  # no renewal is under way
            node.faults.append(Fault("KeepAlive", error))
            done.set_result(None)
            await asyncio.wait_for(keeper.lost.wait(), 10)
            with pytest.raises(errors.LeaseNotFound):
                keeper.check()
        node.faults.append(Fault("KeepAlive", error))
        with pytest.raises(type(error)):
            async with client.keep_alive(lease.id):
                pass


async def test_a_holder_that_is_cut_off_knows_it(node: Node) -> None:
    time = Time()
    async with AsyncClient([node.address], clock=time.clock, sleep=time.sleep, timeout=0.5) as client:
        lease = await client.grant_lease(9)
        async with client.keep_alive(lease.id) as keeper:
            node.stop()
            await time.wake(after=9.0)
            assert not keeper.held
            await keeper.lost.wait()


class Mute:
    """A cluster that lets the holder have one renewal, and then says nothing for as long as it is waited for."""

    timeout = 20.0

    def __init__(self) -> None:
        self.now = 0.0
        self.renewed = False

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def call(self, method: object, request: object, *, timeout: float = 0.0) -> lease_pb2.LeaseKeepAliveResponse:
        if not self.renewed:
            self.renewed = True
            return lease_pb2.LeaseKeepAliveResponse(ttl=2)
        await self.sleep(timeout or self.timeout)
        raise errors.DeadlineExceeded


async def test_no_renewal_is_waited_for_beyond_the_ttl() -> None:
    mute = Mute()
    async with LeaseKeeper(mute, "default", 7) as keeper:  # type: ignore[arg-type]  # all that it uses is here
        await keeper.lost.wait()
        assert mute.now == pytest.approx(2.0)


class Away(Mute):
    """A cluster that is away for 8.3 s of a lease of 10 s: one renewal is waited for in vain."""

    timeout = 5.0

    async def call(self, method: object, request: object, *, timeout: float = 0.0) -> lease_pb2.LeaseKeepAliveResponse:
        if 0 < self.now < 8.3:
            await self.sleep(timeout)
            raise errors.DeadlineExceeded
        return lease_pb2.LeaseKeepAliveResponse(ttl=10)


async def test_what_is_left_of_a_lease_after_a_renewal_in_vain_is_not_slept_away() -> None:
    away = Away()
    async with LeaseKeeper(away, "default", 7) as keeper:  # type: ignore[arg-type]  # all that it uses is here
        while away.now < 30:
            await asyncio.sleep(0)
            assert keeper.held

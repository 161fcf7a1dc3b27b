"""How a watch's events are packed into responses, and when it is told how far it has come."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from itertools import pairwise
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebuladb.api import leadership, leaving, pace
from nebuladb.api import watch as module
from nebuladb.api.backend import Backend
from nebuladb.api.watch import MAX_RESPONSE_BYTES, MAX_RESPONSE_EVENTS, ShardWatch, _responses
from nebuladb.client import AsyncClient
from nebuladb.client.errors import Failure
from nebuladb.client.watch import WatchPlan
from nebuladb.errors import InvalidArgument, NoLeader, Unavailable, WrongShard
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv import watch as hubs
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.watch import WatchHub
from nebuladb.kv.watcher import Event, EventBatch
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.served import Served
from tests.unit.api.turns import turns_of_calls
from tests.unit.node.lone import SECONDS, Lone


def batch(revision: int, sizes: list[int]) -> EventBatch:
    kvs = [KeyValue(b"%d" % place, revision, revision, 1, 0, bytes(size)) for place, size in enumerate(sizes)]
    return EventBatch(revision, tuple(Event(kv, deleted=False) for kv in kvs))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from([1, 100_000, 700_000, 1_200_000]), min_size=1, max_size=5), max_size=6))
def test_every_event_comes_once_in_order_and_a_revision_is_cut_only_with_a_mark(revisions: list[list[int]]) -> None:
    batches = [batch(revision, sizes) for revision, sizes in enumerate(revisions, 2)]
    responses = list(_responses(batches, []))
    told = [(e.kv.mod_revision, e.kv.key, len(e.kv.value)) for response in responses for e in response.events]
    assert told == [(b.revision, e.kv.key, len(e.kv.value)) for b in batches for e in b.events]
    for response, following in pairwise(responses):
        cut = response.events[-1].kv.mod_revision == following.events[0].kv.mod_revision
        assert response.fragment == cut
    assert not responses or not responses[-1].fragment
    for response in responses:
        assert len(response.events) == 1 or sum(len(e.kv.value) for e in response.events) <= MAX_RESPONSE_BYTES


def test_a_huge_revision_comes_in_responses_of_bounded_count() -> None:
    responses = list(_responses([batch(2, [1] * (3 * MAX_RESPONSE_EVENTS + 1))], []))
    assert [len(response.events) for response in responses] == [MAX_RESPONSE_EVENTS] * 3 + [1]


def test_of_a_revision_in_parts_the_last_response_has_events_and_no_mark() -> None:
    whole = batch(2, [1] * 5)
    parts = [EventBatch(2, whole.events[:3], more=True), EventBatch(2, whole.events[3:], more=True), EventBatch(2, ())]
    held: list[Event] = []
    told = [[(len(r.events), r.fragment) for r in _responses([part], held)] for part in (batch(1, [1]), *parts)]
    assert told == [[(1, False)], [(2, True)], [(2, True)], [(1, False)]]
    together = list(_responses([batch(1, [1]), *parts, batch(3, [1])], held))
    assert [(response.events[0].kv.mod_revision, response.fragment) for response in together] == [
        (1, False), (2, True), (2, True), (2, False),
    ]  # fmt: skip
    assert [len(response.events) for response in together] == [1, 2, 2, 2], "what follows it shares the last one"


async def test_progress_does_not_pass_over_an_event_that_is_held(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a large revision may have nothing for a watch, and lie in its outbox without a byte."""
    monkeypatch.setattr(hubs, "LARGE", 1)
    backend = Backend(served.pump)
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.batch(dict.fromkeys((b"a", b"b", b"c", b"d", b"e"), b""))
        span = b"a", b""
        part = ShardWatch(backend, backend.route("", b"a"), kv_pb2.WatchRequest(), span, 0, lambda _: None)
        plan = WatchPlan(kv_pb2.WatchRequest(key=b"a"))
        assert plan.absorb(part.announced()) == []
        await client.delete(b"a", b"f")
    hub = served.pump.hub(DEFAULT_GROUP)
    while not part.watcher.count:
        hub.catch_up()
    assert list(part.take()) == [], "it may be the last of its revision"
    while part.watcher.lagging:
        hub.catch_up()
    assert part.progress() is None
    told = [plan.absorb(response) for response in part.take()]
    assert [[event.kv.key for event in its] for its in told if not isinstance(its, Failure)] == [[b"a"]]
    part.close()


async def test_a_client_is_told_a_revision_that_comes_in_parts_whole(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "LARGE", 3)
    keys = {b"k%02d" % number: b"" for number in range(20)}
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.batch(keys)
        before = (await client.put(b"k", b"")).revision
        deleted = await client.delete(b"k0", b"k2")
        again = await client.put(b"k05", b"")
        async with asyncio.timeout(SECONDS), aclosing(client.watch(b"k", b"l", start_revision=before)) as events:
            told = [await anext(events) for _ in range(22)]
    assert [event.kv.key for event in told] == [b"k", *keys, b"k05"]
    assert {event.kv.mod_revision for event in told[1:21]} == {deleted.revision} == {again.revision - 1}


async def test_an_event_that_comes_as_the_time_for_progress_is_up_is_told_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is told of a revision passes over what comes of it later: the event would be lost."""
    lone = Lone()
    await asyncio.wait_for(lone.serve(), SECONDS)

    async def late(ready: asyncio.Event, seconds: float | None) -> bool:
        await lone.put()
        await ready.wait()
        return False

    monkeypatch.setattr(module, "_wait", late)
    request = kv_pb2.WatchRequest(key=b"k", progress=True)
    responses: Any = module.watch(Backend(lone.pump), request)
    async with asyncio.timeout(SECONDS), aclosing(responses):
        assert (await anext(responses)).created
        for _ in range(3):
            response = await anext(responses)
            assert [event.kv.mod_revision for event in response.events] == [response.header.revision]
    await lone.pump.stop()


async def test_a_watch_whose_replica_leaves_the_node_says_so_and_not_that_its_keyspace_is_gone() -> None:
    """A client goes on at another node then; after the other word it ends."""
    lone = Lone()
    await asyncio.wait_for(lone.serve(), SECONDS)
    responses: Any = module.watch(Backend(lone.pump), kv_pb2.WatchRequest(key=b"k"))
    async with asyncio.timeout(SECONDS), aclosing(responses):
        assert (await anext(responses)).created
        lone.pump.hub(DEFAULT_GROUP).close()
        with pytest.raises(Unavailable, match="another node"):
            await anext(responses)
    await lone.pump.stop()


async def test_a_watch_ends_where_no_leader_is_known_so_that_its_client_goes_on_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that was cut off from the majority was silent for as long as that lasted, while others had the events."""
    monkeypatch.setattr(leadership, "CHECK_SECONDS", 0.01)
    lone = Lone()
    await asyncio.wait_for(lone.serve(), SECONDS)
    backend = Backend(lone.pump)
    responses: Any = module.watch(backend, kv_pb2.WatchRequest(key=b"k"))
    async with asyncio.timeout(SECONDS), aclosing(responses):
        assert (await anext(responses)).created
        lone.node.host.step_down(DEFAULT_GROUP)
        with pytest.raises(NoLeader, match="another node") as caught:
            await anext(responses)
        assert caught.value.code == "UNAVAILABLE"
        assert caught.value.retryable
    await lone.until(lambda: not backend.leadership.busy)
    await lone.pump.stop()


@pytest.mark.parametrize("fields", [{"start_revision": -5}, {"start_revisions": [{"group": 2, "revision": -1}]}])
async def test_no_watch_starts_below_zero(fields: dict[str, Any]) -> None:
    """As if the keyspace had been dropped, it was said."""
    lone = Lone()
    await asyncio.wait_for(lone.serve(), SECONDS)
    responses: Any = module.watch(Backend(lone.pump), kv_pb2.WatchRequest(key=b"k", **fields))
    async with asyncio.timeout(SECONDS), aclosing(responses):
        with pytest.raises(InvalidArgument, match="from 1 on"):
            await anext(responses)
    await lone.pump.stop()


async def test_a_start_in_a_shard_that_the_keyspace_has_not_is_refused() -> None:
    """It would be ignored, and what was asked for missed."""
    lone = Lone()
    await asyncio.wait_for(lone.serve(), SECONDS)
    request = kv_pb2.WatchRequest(key=b"k", start_revisions=[kv_pb2.ShardRevision(group=99, revision=2)])
    responses: Any = module.watch(Backend(lone.pump), request)
    async with asyncio.timeout(SECONDS), aclosing(responses):
        with pytest.raises(WrongShard, match="no shard 99"):
            await anext(responses)
    await lone.pump.stop()


async def test_a_shard_without_events_is_told_of_its_progress_however_busy_the_others_are(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its part of the watch stands where it began, and after a break compaction seems to have taken some."""
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.1)
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.create_keyspace("a", "hash", shards=2)
    async with AsyncClient([served.address], keyspace="a", timeout=SECONDS) as client:
        shards = {served.backend.route("a", b"w/%d" % n).group: b"w/%d" % n for n in range(20)}
        other = {served.backend.route("a", b"x/%d" % n).group: b"x/%d" % n for n in range(20)}
        idle, busy = sorted(shards)
        plan = WatchPlan(kv_pb2.WatchRequest(keyspace="a", key=b"w/", range_end=b"w0"))
        responses: Any = module.watch(served.backend, plan.request)

        async def write() -> None:
            while True:
                await client.put(shards[busy], b"v")
                await asyncio.sleep(0.01)

        for _ in range(5):
            await client.put(other[idle], b"v")
        writing = asyncio.create_task(write())
        revisions: list[int] = []
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(SECONDS), aclosing(responses):
            async for response in responses:
                revisions += [event.kv.mod_revision for event in cast(list[Any], plan.absorb(response))]
                if response.created:
                    await client.put(other[idle], b"v")  # of no concern to the watch
                if asyncio.get_running_loop().time() - begun > 1:
                    break
        writing.cancel()
        assert len(revisions) > 20
        assert revisions == sorted(set(revisions))
        store = served.pump.store(idle)
        starts = {pair.group: pair.revision for pair in plan.request.start_revisions}
        assert starts[idle] == store.revision + 1


async def test_an_event_of_one_shard_asks_no_other_shard(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty watches of a thousand shards each took a core for fifty writes a second."""
    taken: list[int] = []
    take = ShardWatch.take

    def counted(part: ShardWatch) -> Any:
        taken.append(part.group)
        return take(part)

    monkeypatch.setattr(ShardWatch, "take", counted)
    async with AsyncClient([served.address], keyspace="a", timeout=SECONDS) as client:
        await client.create_keyspace("a", "hash", shards=16)
        responses: Any = module.watch(served.backend, kv_pb2.WatchRequest(keyspace="a", key=b"\0", range_end=b"\0"))
        async with asyncio.timeout(SECONDS), aclosing(responses):
            for _ in range(16):
                assert (await anext(responses)).created
            for number in range(20):
                taken.clear()
                put = await client.put(b"k", b"%d" % number)
                response = await anext(responses)
                assert [event.kv.mod_revision for event in response.events] == [put.revision]
                if number > 1:  # each is asked once in the beginning: its part may have been canceled by then
                    assert set(taken) == {response.header.group}


async def test_a_range_without_keys_is_refused_or_empty_however_many_shards_there_are(served: Served) -> None:
    """A watch of one hung, and a deletion said that the range lies in 0 shards."""
    async with AsyncClient([served.address], keyspace="r", timeout=SECONDS) as client:
        await client.create_keyspace("r", "range", split_at=[b"k3", b"k5"])
        async with asyncio.timeout(SECONDS):
            with pytest.raises(InvalidArgument):
                await anext(client.watch(b"k9", b"k1"))
        assert (await client.delete(b"k9", b"k1")).deleted == 0
        assert [kv async for kv in client.scan(b"k9", b"k1")] == []


async def test_watches_over_many_shards_are_made_and_forgotten_in_stretches_and_have_a_bound(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 over 1,024 shards took 600 MB, and kept the loop for a second when they came, and two when they went."""
    async with AsyncClient([served.address], timeout=SECONDS) as client:
        await client.create_keyspace("k", "hash", shards=8)
    monkeypatch.setattr(module, "PARTS_AT_ONCE", 4)
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0.0)
    monkeypatch.setattr(leaving, "AT_ONCE", 4)
    monkeypatch.setattr(module, "MAX_PARTS", 31)
    made = turns_of_calls(monkeypatch, WatchHub, "watch")
    gone = turns_of_calls(monkeypatch, WatchHub, "remove")
    request = kv_pb2.WatchRequest(keyspace="k", key=b"a", range_end=b"z")
    calls = [served.watch(request) for _ in range(3)]
    await asyncio.gather(*(anext(aiter(call)) for call in calls))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(served.watch(request)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    await served.until(lambda: not served.backend.parts)
    assert (len(made), max(Counter(made).values())) == (24, 4)
    assert (len(gone), max(Counter(gone).values())) == (24, 4)
    await anext(aiter(served.watch(request)))

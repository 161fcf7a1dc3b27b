"""etcdserverpb.Watch on one node: the numbered lines are those of what an etcd server must get right."""

from __future__ import annotations

import asyncio
import gc

import pytest
from grpc import StatusCode

from nebuladb.api import leadership
from nebuladb.api.etcd import events, watch_stream
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.kv import watch as hubs
from nebuladb.kv.watcher import Watcher
from nebuladb.pb.etcd import kv_pb2
from nebuladb.pb.etcd import watch_pb2 as pb
from nebuladb.pb.etcd.mvcc_pb2 import Event, KeyValue
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import GROUP, PROGRESS, Both, cancel, create, lose_leader, made, watching

COMPACTED = "etcdserver: mvcc: required revision has been compacted"
NEW = 1 << 40
"""Beyond any revision there is."""


async def compact(etcd: Faced, revision: int) -> None:
    await etcd.call("Compact", kv_pb2.CompactionRequest(revision=revision))


async def test_created_comes_before_events_and_ids_start_at_zero(etcd: Faced) -> None:
    """etcd 31, 58."""
    first = (await etcd.set(b"k")).header
    async with watching(etcd) as stream:
        stream.send(create(start=first.revision), create(start=first.revision))
        responses = [await stream.next() for _ in range(4)]
    seen: set[int] = set()
    for response in responses:
        assert response.header == first
        assert response.created == (response.watch_id not in seen)
        assert bool(response.events) != response.created
        seen.add(response.watch_id)
    assert seen == {0, 1}


async def test_an_id_can_be_chosen_and_is_free_again_when_its_watch_is_canceled(etcd: Faced) -> None:
    """etcd 31, 33."""
    async with watching(etcd) as stream:
        assert await made(stream, create(watch_id=1), create(), create(), create(watch_id=-7)) == [1, 0, 2, -7]
        stream.send(create(watch_id=1))
        assert await refusal(stream) == "mvcc: duplicate watch ID provided on the WatchStream"
        stream.send(cancel(1))
        response = await stream.next()
        assert (response.watch_id, response.canceled, response.cancel_reason) == (1, True, "")
        assert await made(stream, create(watch_id=1)) == [1]


async def test_a_stream_that_ended_is_not_left_to_the_collector(etcd: Faced) -> None:
    """A fleet of clients that comes again and again would fill a node's memory until the next full collection."""

    def kept() -> dict[int, WatchStream | Watcher]:
        return {id(one): one for one in gc.get_objects() if isinstance(one, (WatchStream, Watcher))}

    gc.collect()
    others = kept()
    gc.disable()
    try:
        async with watching(etcd) as stream:
            await made(stream, create(), create(b"a", b"z"))
            stream.send(cancel(0))
            assert (await stream.next()).canceled
        hub = etcd.pump.hub(GROUP)
        await etcd.until(lambda: not len(hub))
        await etcd.until(lambda: kept().keys() == others.keys())
    finally:
        gc.enable()


async def refusal(stream: Both) -> str:
    """Why a watch was not made (etcd 32)."""
    response = await stream.next()
    assert (response.watch_id, response.created, response.canceled, response.compact_revision) == (-1, True, True, 0)
    assert response.header.revision > 0
    return str(response.cancel_reason)


async def test_a_watch_that_can_not_be_made_is_created_and_canceled_in_one(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 32, 33, 34."""
    async with watching(etcd) as stream:
        stream.send(create(b"b", b"a"), create(b"b", b"b"), create(start=-1), create(start=-1, watch_id=5))
        assert [await refusal(stream) for _ in range(4)] == ["mvcc: watcher range is empty"] * 2 + [COMPACTED] * 2
        assert await made(stream, create(watch_id=5)) == [5]
        monkeypatch.setattr(hubs, "MAX_WATCHERS", 1)
        stream.send(create())
        assert "has 1 watchers" in await refusal(stream)


async def test_a_start_is_inclusive_and_none_is_what_comes_next(etcd: Faced) -> None:
    """etcd 34."""
    revision = (await etcd.set(b"k", b"1")).header.revision
    async with watching(etcd) as stream:
        assert await made(stream, create()) == [0]
        stream.send(create(start=revision))
        assert (await stream.next()).created
        told = await stream.next()
        assert (told.watch_id, [event.kv.mod_revision for event in told.events]) == (1, [revision])
        await etcd.set(b"k", b"2")
        told = [await stream.next() for _ in range(2)]
        assert {response.watch_id for response in told} == {0, 1}
        assert [[event.kv.value for event in response.events] for response in told] == [[b"2"], [b"2"]]
        assert [response.header.revision for response in told] == [revision + 1] * 2


async def test_a_future_start_tells_nothing_of_what_is_before(etcd: Faced) -> None:
    """etcd 35."""
    revision = (await etcd.set(b"k")).header.revision
    async with watching(etcd) as stream:
        assert await made(stream, create(start=revision + 3)) == [0]
        stream.send(PROGRESS)
        for _ in range(4):
            await etcd.set(b"k")
        told: list[int] = []
        while len(told) < 2:
            response = await stream.next()
            assert response.header.revision >= revision + 2  # of progress: not before the revision below the start
            told += [event.kv.mod_revision for event in response.events]
        assert told == [revision + 3, revision + 4]


async def test_a_compacted_start_is_created_and_then_canceled_with_the_compact_revision(etcd: Faced) -> None:
    """etcd 36."""
    for _ in range(3):
        last = (await etcd.set(b"k")).header
    await compact(etcd, last.revision)
    async with watching(etcd) as stream:
        assert await made(stream, create(start=1, watch_id=9)) == [9]
        canceled = await stream.next()
        assert (canceled.watch_id, canceled.created, canceled.canceled) == (9, False, True)
        assert (canceled.compact_revision, canceled.cancel_reason) == (last.revision, "")
        assert (canceled.header.revision, canceled.header.raft_term) == (0, last.raft_term)  # as etcd
        stream.send(create(watch_id=9))
        assert "duplicate" in await refusal(stream)  # the id is the client's until it cancels it
        stream.send(cancel(9))
        assert (await stream.next()).canceled
        assert await made(stream, create(watch_id=9)) == [9]
        stream.send(create(start=last.revision))  # the compacted revision itself is there
        assert (await stream.next()).created
        assert (await stream.next()).events[0].kv.mod_revision == last.revision


async def test_watches_that_have_ended_count_until_the_client_cancels_them(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ids are kept, and so is the bound on how many those are."""
    monkeypatch.setattr(watch_stream, "MAX_WATCHES", 2)
    revision = 0
    for _ in range(3):
        revision = (await etcd.set(b"k")).header.revision
    await compact(etcd, revision)
    async with watching(etcd) as stream:
        for watch_id in (1, 2):
            assert await made(stream, create(start=1, watch_id=watch_id)) == [watch_id]
            assert (await stream.next()).compact_revision == revision
        stream.send(create(start=1, watch_id=3))
        assert await refusal(stream) == "the stream has 2 watches"
        stream.send(cancel(1))
        assert (await stream.next()).canceled
        assert await made(stream, create(watch_id=3)) == [3]


async def test_a_revision_is_never_split_unless_fragments_are_asked_for(etcd: Faced) -> None:
    """etcd 37."""
    size = 1 << 20
    keys = [b"big%d" % number for number in range(9)]
    for key in keys:
        await etcd.set(key, bytes(size))
    async with watching(etcd) as stream:
        fragments = create(b"big", b"bih", prev_kv=True, fragment=True)
        assert await made(stream, create(b"big", b"bih", prev_kv=True), fragments) == [0, 1]
        await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"big", range_end=b"bih"))
        whole: list[pb.WatchResponse] = []
        pieces: list[pb.WatchResponse] = []
        while not (whole and pieces and not pieces[-1].fragment):
            response = await stream.next()
            (pieces if response.watch_id else whole).append(response)
    assert len(whole) == 1
    assert [event.kv.key for event in whole[0].events] == keys
    assert whole[0].ByteSize() > len(keys) * size
    assert not whole[0].fragment
    assert len(pieces) > 3
    assert [response.fragment for response in pieces] == [True] * (len(pieces) - 1) + [False]
    assert all(response.ByteSize() <= events.FRAGMENT_BYTES for response in pieces)
    assert [event for response in pieces for event in response.events] == list(whole[0].events)
    assert {response.header.revision for response in pieces} == {whole[0].header.revision}


async def test_a_revision_too_large_for_a_message_ends_the_watch_that_wants_no_fragments(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 37, and its bound here."""
    monkeypatch.setattr(events, "MAX_MESSAGE_BYTES", 100)
    async with watching(etcd) as stream:
        assert await made(stream, create()) == [0]
        await etcd.set(b"k", bytes(200))
        canceled = await stream.next()
        assert canceled.canceled
        assert "too large for one message" in canceled.cancel_reason
        await etcd.set(b"k", b"")
        assert await made(stream, create(watch_id=7)) == [7]


async def test_the_previous_value_is_that_of_the_revision_before(etcd: Faced) -> None:
    """etcd 38."""
    async with watching(etcd) as stream:
        assert await made(stream, create(prev_kv=True), create()) == [0, 1]
        for value in (b"1", b"2"):
            last = (await etcd.set(b"k", value)).header.revision
        await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k"))
        told = await events_of(stream, 6)
    with_previous = [event for watch, event in told if watch == 0]
    values = [event.prev_kv.value if event.HasField("prev_kv") else None for event in with_previous]
    assert values == [None, b"1", b"2"]
    assert with_previous[2].kv == KeyValue(key=b"k", mod_revision=last + 1)
    assert with_previous[2].prev_kv == KeyValue(
        key=b"k", create_revision=last - 1, mod_revision=last, version=2, value=b"2"
    )
    assert not any(event.HasField("prev_kv") for watch, event in told if watch == 1)
    await compact(etcd, last)
    async with watching(etcd) as stream:
        stream.send(create(start=last, prev_kv=True))
        assert (await stream.next()).created
        told = await events_of(stream, 2)
        assert [event.HasField("prev_kv") for _, event in told] == [False, True]  # what is compacted is gone


async def events_of(stream: Both, count: int) -> list[tuple[int, Event]]:
    """(watch id, event), so many."""
    told: list[tuple[int, Event]] = []
    while len(told) < count:
        response = await stream.next()
        told += [(response.watch_id, event) for event in response.events]
    return told


async def test_filters_are_the_servers(etcd: Faced) -> None:
    """etcd 39."""
    kind = pb.WatchCreateRequest
    async with watching(etcd) as stream:
        both = create(filters=[kind.NOPUT, kind.NODELETE])
        assert await made(stream, create(filters=[kind.NOPUT]), create(filters=[kind.NODELETE]), both) == [0, 1, 2]
        await etcd.set(b"k")
        await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k"))
        told = await events_of(stream, 2)
        assert {(watch, event.type) for watch, event in told} == {(0, Event.DELETE), (1, Event.PUT)}
        await etcd.set(b"k")
        assert [watch for watch, _ in await events_of(stream, 1)] == [1]
        stream.send(PROGRESS)
        assert (await stream.next()).watch_id == -1


async def test_notifications_come_by_time_and_not_after_events(etcd: Faced) -> None:
    """etcd 40."""
    etcd.api.face.progress_seconds = 0.05
    last = (await etcd.set(b"k")).header
    async with watching(etcd) as stream:
        ids = await made(stream, create(progress_notify=True), create(), create(progress_notify=True, start=NEW))
        assert ids == [0, 1, 2]
        for _ in range(3):
            response = await stream.next()
            assert response == pb.WatchResponse(header=last, watch_id=0)  # of its own, and of no other
    etcd.api.face.progress_seconds = 600
    async with watching(etcd) as stream:
        assert await made(stream, create(progress_notify=True)) == [0]
        stream.send(PROGRESS)  # the next to come is the answer to this, hence no notification came before
        assert (await stream.next()).watch_id == -1


async def test_a_progress_answer_is_one_for_the_stream_and_never_overtakes_events(etcd: Faced) -> None:
    """etcd 41."""
    first = (await etcd.set(b"k")).header.revision
    for _ in range(50):
        last = (await etcd.set(b"k")).header.revision
    async with watching(etcd) as stream:
        stream.send(PROGRESS)  # of a stream without watches there is nothing to say
        stream.send(create(start=first), create(start=last), PROGRESS)
        told: list[int] = []
        while (response := await stream.next()).watch_id != -1:
            told += [event.kv.mod_revision for event in response.events if response.watch_id == 0]
        assert told == list(range(first, last + 1))
        assert (response.header.revision, list(response.events), response.created) == (last, [], False)
        stream.send(PROGRESS, PROGRESS)
        assert [(await stream.next()).watch_id for _ in range(2)] == [-1, -1]


async def test_an_unknown_cancel_is_silent_and_an_empty_key_is_the_least_one(etcd: Faced) -> None:
    """etcd 42."""
    async with watching(etcd) as stream:
        stream.send(cancel(17), pb.WatchRequest())
        assert await made(stream, create(b""), create(b"", b"\0")) == [0, 1]
        await etcd.set(b"k")
        await etcd.set(b"\0")
        told = await events_of(stream, 3)
    assert sorted((watch, event.kv.key) for watch, event in told) == [(0, b"\0"), (1, b"\0"), (1, b"k")]


async def test_after_the_last_request_events_go_on(etcd: Faced) -> None:
    async with watching(etcd) as stream:
        assert await made(stream, create()) == [0]
        stream.send(None)
        await etcd.set(b"k")
        assert len(await events_of(stream, 1)) == 1
    hub = etcd.node.groups[GROUP].hub
    await etcd.until(lambda: len(hub) == 0)  # a stream that ends leaves no watch behind


async def test_who_wants_a_leader_is_sent_away_when_it_is_lost(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd 44."""
    monkeypatch.setattr(leadership, "CHECK_SECONDS", 0.01)
    no_leader = (StatusCode.UNAVAILABLE, "etcdserver: no leader")
    wants = (("hasleader", "true"),)
    async with watching(etcd, wants) as stream, watching(etcd) as other:
        assert await made(stream, create()) == [0]
        assert await made(other, create()) == [0]
        lose_leader(etcd)
        assert await stream.end() == no_leader
        other.send(PROGRESS)
        assert (await other.next()).watch_id == -1
    async with watching(etcd, wants) as stream:
        assert await stream.end() == no_leader
    await etcd.until(lambda: len(etcd.node.groups[GROUP].hub) == 0)


async def test_what_is_no_request_ends_the_stream_alone(etcd: Faced) -> None:
    class Noise:
        def SerializeToString(self) -> bytes:  # noqa: N802
            return b"\xff"

    async with watching(etcd) as stream:
        stream.send(Noise())
        assert (await stream.end())[0] is StatusCode.INTERNAL


async def test_a_shard_that_leaves_the_node_ends_the_stream_for_another_node(etcd: Faced) -> None:
    async with watching(etcd) as stream:
        assert await made(stream, create()) == [0]
        etcd.node.groups[GROUP].hub.close()
        code, text = await stream.end()
        assert code is StatusCode.UNAVAILABLE
        assert "at another node" in text


async def test_a_progress_request_is_answered_when_a_watch_that_is_told_nothing_has_caught_up(etcd: Faced) -> None:
    first = (await etcd.set(b"k")).header.revision
    for _ in range(50):
        await etcd.set(b"k")
    async with watching(etcd) as stream:
        stream.send(create(b"nobody", start=first), PROGRESS)
        assert (await stream.next()).created
        assert (await stream.next()).watch_id == -1


async def test_a_progress_request_is_answered_when_the_revision_comes_that_a_watch_waits_for(etcd: Faced) -> None:
    last = (await etcd.set(b"k")).header.revision
    async with watching(etcd) as stream:
        stream.send(create(b"nobody", start=last + 3), PROGRESS)
        assert (await stream.next()).created
        await asyncio.sleep(0.2)
        for _ in range(3):
            await etcd.set(b"k")
        response = await stream.next()
        assert (response.watch_id, response.header.revision >= last + 2) == (-1, True)


async def test_a_stream_that_outlives_its_shard_takes_no_watch(etcd: Faced) -> None:
    async with watching(etcd) as stream:
        assert await made(stream, create()) == [0]
        stream.send(cancel(0))
        assert (await stream.next()).canceled
        etcd.node.groups[GROUP].hub.close()
        stream.send(create())
        code, text = await stream.end()
        assert code is StatusCode.UNAVAILABLE
        assert "at another node" in text

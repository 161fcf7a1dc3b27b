"""Revisions that come to a watch in parts: told whole, or in fragments between which nothing else is said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nebuladb.api.etcd import events
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.kv import watch as hubs
from nebuladb.kv.watcher import Event as Told
from nebuladb.pb.etcd import kv_pb2
from nebuladb.pb.etcd import watch_pb2 as pb
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import Both, cancel, create, made, watching


async def test_a_revision_that_comes_in_parts_is_encoded_once_for_all_and_told_whole(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [b"k%02d" % number for number in range(20)]
    for key in keys:
        await etcd.set(key)
    made_once: list[bytes] = []
    event = events._event

    def counted(one: Told) -> bytes:
        made_once.append(one.kv.key)
        return event(one)

    monkeypatch.setattr(events, "_event", counted)
    monkeypatch.setattr(hubs, "LARGE", 3)
    async with watching(etcd) as one, watching(etcd) as other:
        assert await made(one, create(b"k", b"l"), create(b"k", b"l", fragment=True)) == [0, 1]
        assert await made(other, create(b"a", b"z")) == [0]
        await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))
        told = [await one.next(), await one.next(), await other.next()]
        assert made_once == keys
        await etcd.set(b"k")
        assert [len((await stream.next()).events) for stream in (one, one, other)] == [1, 1, 1]
    assert [[event.kv.key for event in response.events] for response in told] == [keys] * 3


async def forty_keys(etcd: Faced) -> None:
    """k00 to k39, a KiB each."""
    for number in range(40):
        await etcd.set(b"k%02d" % number, bytes(1000))


def unattached(etcd: Faced) -> WatchStream:
    """A stream of watches without a call around it."""
    face = Face(etcd.backend)
    return WatchStream(face, face.backend.routing.shards("etcd")[0])


async def amid_fragments(etcd: Faced, stream: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch 0 of the stream is about to be told a revision of 40 KiB in fragments; watch 1 is on another key."""
    monkeypatch.setattr(events, "FRAGMENT_BYTES", 3_000)
    monkeypatch.setattr(hubs, "LARGE", 3)
    await forty_keys(etcd)
    assert await made(stream, create(b"k", b"l", fragment=True, prev_kv=True), create(b"z")) == [0, 1]
    await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))


async def test_nothing_comes_between_the_fragments_of_a_revision(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd's client in Go puts together what comes one after the other."""
    async with watching(etcd) as stream:
        await amid_fragments(etcd, stream, monkeypatch)
        told = [await stream.next()]
        assert (told[0].watch_id, told[0].fragment) == (0, True)
        await etcd.set(b"z")
        stream.send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        stream.send(create(b"x"))
        while {response.watch_id for response in told} != {0, 1, 2, -1}:
            told.append(await stream.next())
    last = next(place for place, response in enumerate(told) if not response.fragment)
    assert {response.watch_id for response in told[: last + 1]} == {0}
    assert sum(len(response.events) for response in told[: last + 1]) == 40


async def test_a_watch_that_is_canceled_amid_fragments_lets_the_others_speak(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(etcd) as stream:
        await amid_fragments(etcd, stream, monkeypatch)
        assert (await stream.next()).fragment
        stream.send(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0)))
        while not (await stream.next()).canceled:
            pass
        await etcd.set(b"z")
        assert (await stream.next()).watch_id == 1


async def test_nothing_comes_between_fragments_and_that_their_watch_is_canceled(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asked for that while a fragment was written."""
    monkeypatch.setattr(events, "FRAGMENT_BYTES", 3_000)
    monkeypatch.setattr(events, "CHUNK_BYTES", 1_000)
    await forty_keys(etcd)
    stream = unattached(etcd)
    responses = stream.responses()

    async def told() -> pb.WatchResponse:
        return pb.WatchResponse.FromString(await asyncio.wait_for(anext(responses), 10))

    stream._take(create(b"k", b"l", fragment=True, prev_kv=True))
    stream._take(create(b"z"))
    assert [(await told()).created for _ in range(2)] == [True, True]
    await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))
    await etcd.set(b"z")
    assert (await told()).fragment
    stream._take(cancel(0))
    order = [await told()]
    while order[-1].watch_id == 0:
        order.append(await told())
    assert [response.canceled for response in order[:-1]] == [False] * (len(order) - 2) + [True]
    assert [event.kv.key for event in order[-1].events] == [b"z"]
    stream.close()


async def test_what_was_gathered_goes_with_its_watch(etcd: Faced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_MESSAGE_BYTES", 20_000)
    monkeypatch.setattr(hubs, "LARGE", 3)
    await forty_keys(etcd)
    stream = unattached(etcd)
    stream._take(create(b"k", b"l", prev_kv=True))
    responses = stream.responses()
    assert pb.WatchResponse.FromString(await anext(responses)).created
    await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))
    assert pb.WatchResponse.FromString(await asyncio.wait_for(anext(responses), 10)).canceled
    assert [watch.telling.size for watch in stream._watches.values()] == [0]
    stream.close()


async def test_a_revision_that_history_has_too_much_of_ends_the_watch_before_all_of_it_is_read(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_MESSAGE_BYTES", 10_000)
    monkeypatch.setattr(events, "FRAGMENT_BYTES", 5_000)
    monkeypatch.setattr(hubs, "LARGE", 3)
    await forty_keys(etcd)
    deleted = await etcd.call("DeleteRange", kv_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))
    encoded = 0
    event = events._event

    def counted(one: Told) -> bytes:
        nonlocal encoded
        encoded += 1
        return event(one)

    monkeypatch.setattr(events, "_event", counted)
    async with watching(etcd) as stream:
        ranges: dict[str, Any] = {"prev_kv": True, "start": deleted.header.revision}
        assert await made(stream, create(b"k", b"l", **ranges)) == [0]
        canceled = await stream.next()
        assert canceled.canceled
        assert "too large for one message" in canceled.cancel_reason
        assert encoded <= 10 + 2 * 3
        assert await made(stream, create(b"k", b"l", fragment=True, **ranges)) == [1]
        pieces = [await stream.next()]
        while pieces[-1].fragment:
            pieces.append(await stream.next())
        assert sum(len(piece.events) for piece in pieces) == 40

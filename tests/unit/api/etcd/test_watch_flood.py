"""One stream that makes watches without end: what they have to say doesn't gather, and its other watches are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.api.leaving import AT_ONCE
from nebuladb.kv.watch import WatchHub
from nebuladb.pb.etcd import kv_pb2, watch_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import GROUP, create
from tests.unit.api.turns import turns_of_calls

COUNT = 4_000


async def test_what_watches_that_are_made_without_end_have_to_say_does_not_gather(etcd: Faced) -> None:
    for _ in range(3):
        revision = (await etcd.set(b"k")).header.revision
    await etcd.call("Compact", kv_pb2.CompactionRequest(revision=revision))
    face = Face(etcd.backend)
    stream = WatchStream(face, face.backend.routing.shards("etcd")[0])

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(COUNT):
            yield create(start=1).SerializeToString()  # compacted: each is told so

    listening = asyncio.create_task(stream.listen(requests()))
    most = 0
    async for _ in stream.responses():
        most = max(most, len(stream._ready))
        if listening.done() and not stream._control:
            break
        await asyncio.sleep(0)
    assert most <= 1_000
    stream.close()


async def with_watches(etcd: Faced) -> WatchStream:
    """A stream of `COUNT` that want progress and nothing else, all told that they are made."""
    face = Face(etcd.backend)
    stream = WatchStream(face, face.backend.routing.shards("etcd")[0])

    async def requests() -> AsyncIterator[bytes]:
        for number in range(COUNT):
            yield create(b"w%05d" % number, b"w%05dz" % number, progress_notify=True).SerializeToString()

    listening = asyncio.create_task(stream.listen(requests()))
    responses = stream.responses()
    for _ in range(COUNT):
        await anext(responses)
    await listening
    return stream


async def test_a_client_that_goes_and_had_many_watches_does_not_keep_the_loop(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 ranges took more than half a second, for which no heartbeat went out."""
    stream = await with_watches(etcd)
    removed = turns_of_calls(monkeypatch, WatchHub, "remove")
    stream.close()
    hub = etcd.pump.hub(GROUP)
    await etcd.until(lambda: not len(hub))
    assert max(Counter(removed).values()) <= AT_ONCE
    assert len(removed) == COUNT


async def test_notifications_of_many_watches_are_made_as_they_are_sent(
    etcd: Faced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, 50,000 took the loop for a tenth of a second."""
    stream = await with_watches(etcd)
    response = watch_pb2.WatchResponse
    made = turns_of_calls(monkeypatch, watch_pb2, "WatchResponse")
    stream._tick()
    responses = stream.responses()
    for _ in range(COUNT):
        told = response.FromString(await anext(responses))
        assert not told.created
        await asyncio.sleep(0)
    assert max(Counter(made).values()) <= 2
    stream.close()

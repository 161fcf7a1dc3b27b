"""One stream that makes watches without end: what they have to say doesn't gather, and its other watches are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.pb.etcd import kv_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import create

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

"""One stream that makes and cancels watches without end: nothing gathers, and its other watches are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.pb.etcd import kv_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import cancel, create

PAIRS = 4_000


async def test_watches_made_and_canceled_without_end_leave_nothing_behind(etcd: Faced) -> None:
    for _ in range(3):
        revision = (await etcd.set(b"k")).header.revision
    await etcd.call("Compact", kv_pb2.CompactionRequest(revision=revision))
    face = Face(etcd.backend)
    stream = WatchStream(face, face.backend.routing.shards("etcd")[0])

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(PAIRS):
            yield create(start=1, watch_id=5).SerializeToString()
            yield cancel(5).SerializeToString()

    listening = asyncio.create_task(stream.listen(requests()))
    most = 0
    async for _ in stream.responses():
        most = max(most, len(stream._ready))
        if listening.done() and not stream._control:
            break
        await asyncio.sleep(0)
    assert most <= 1_000
    stream.close()

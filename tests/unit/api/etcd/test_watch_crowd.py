"""One write that many watches are told of: so many of them a turn of the loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.api.portions import EACH_BYTES, TURN_BYTES
from nebuladb.api.watch import watch
from nebuladb.pb.etcd import watch_pb2
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import create
from tests.unit.api.turns import Turns
from tests.unit.node.lone import SECONDS

MANY = 2_000
LARGE = 1 << 20
FEW = 40

Stream = Callable[[Faced], AsyncIterator[bytes]]
"""Of one watch of the key: responses, the first of which says that it is made."""


async def of_nebula(etcd: Faced) -> AsyncIterator[bytes]:
    async for response in watch(etcd.backend, kv_pb2.WatchRequest(keyspace="etcd", key=b"k")):
        yield response.SerializeToString()


async def of_etcd(etcd: Faced) -> AsyncIterator[bytes]:
    face = Face(etcd.backend)
    stream = WatchStream(face, face.backend.routing.shards("etcd")[0])

    async def requests() -> AsyncIterator[bytes]:
        yield create(b"k").SerializeToString()

    await stream.listen(requests())
    async for response in stream.responses():
        assert watch_pb2.WatchResponse.FromString(response).watch_id == 0
        yield response


@pytest.mark.parametrize("stream", [of_nebula, of_etcd])
@pytest.mark.parametrize(("count", "size"), [(MANY, 1), (FEW, LARGE)])
async def test_many_are_told_in_turns(etcd: Faced, stream: Stream, count: int, size: int) -> None:
    streams = [stream(etcd) for _ in range(count)]
    for one in streams:
        await anext(one)
    turns, told = Turns(), Counter[int]()

    async def listen(one: AsyncIterator[bytes]) -> None:
        await anext(one)
        told[turns.now] += 1

    listening = [asyncio.create_task(listen(one)) for one in streams]
    await asyncio.sleep(0)
    await etcd.set(b"k", bytes(size))
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*listening)
    assert told.total() == count
    assert max(told.values()) <= TURN_BYTES // (EACH_BYTES + size) + 2, "watches in one turn"

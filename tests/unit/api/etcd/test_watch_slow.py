"""Streams whose clients take nothing, and the others of their node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.api import watch as native
from nebuladb.api.deliveries import MEDIUM_BYTES, Deliveries
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream
from nebuladb.pb.etcd import watch_pb2 as pb
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.streams import Both, create, watching
from tests.unit.api.hands import Hands
from tests.unit.node.lone import SECONDS

VALUE = bytes(MEDIUM_BYTES + 1)


class Etcd:
    """A stream of etcd's Watch, read by hand."""

    def __init__(self, etcd: Faced) -> None:
        face = Face(etcd.backend)
        self.ended = asyncio.Event()
        self._stream = WatchStream(face, face.backend.routing.shards("etcd")[0], end=self._end)
        self._listening = asyncio.create_task(self._stream.listen(self._requests()))
        self._responses: Any = self._stream.responses()

    async def _requests(self) -> AsyncIterator[bytes]:
        yield create().SerializeToString()

    def _end(self) -> None:
        self.ended.set()

    async def next(self) -> pb.WatchResponse:
        return pb.WatchResponse.FromString(await asyncio.wait_for(anext(self._responses), SECONDS))

    async def close(self) -> None:
        self._listening.cancel()
        await self._responses.aclose()
        self._stream.close()


class Native:
    """`KV.Watch`, read by hand."""

    def __init__(self, etcd: Faced) -> None:
        self.ended = asyncio.Event()
        request = kv_pb2.WatchRequest(keyspace="etcd", key=b"k")
        self._responses: Any = native.watch(etcd.backend, request, self._end)

    def _end(self) -> None:
        self.ended.set()

    async def next(self) -> Any:
        return await asyncio.wait_for(anext(self._responses), SECONDS)

    async def close(self) -> None:
        await self._responses.aclose()


@pytest.mark.parametrize("kind", [Etcd, Native])
async def test_who_takes_nothing_is_ended_when_others_wait(kind: type[Etcd | Native], etcd: Faced) -> None:
    clock = Hands()
    deliveries = etcd.backend.deliveries = Deliveries(1, clock)
    idle, other = kind(etcd), kind(etcd)
    assert (await idle.next()).created
    assert (await other.next()).created
    waiting = asyncio.create_task(idle.next())
    await asyncio.sleep(0)
    await etcd.set(b"k", VALUE)
    assert (await waiting).events, "and asks for nothing more: it has not taken this yet"
    waiting = asyncio.create_task(other.next())
    async with asyncio.timeout(SECONDS):
        while clock.idle:  # noqa: ASYNC110
            await asyncio.sleep(0)
    clock.pass_by(1.9)
    assert not idle.ended.is_set()
    assert not waiting.done()
    clock.pass_by(1_000)
    assert idle.ended.is_set()
    assert (await waiting).events
    assert not other.ended.is_set()
    await idle.close()
    assert deliveries.used > len(VALUE), "the other one's"
    await other.close()
    assert deliveries.used == 0
    assert clock.idle


async def read_on(stream: Both) -> None:
    while True:
        await stream.next()


async def test_a_client_that_does_not_read_is_told_to_go_on_by_itself(etcd: Faced) -> None:
    clock = Hands()
    etcd.backend.deliveries = Deliveries(1, clock)
    async with watching(etcd) as idle, watching(etcd) as other:
        for stream in (idle, other):
            stream.send(create())
            assert (await stream.next()).created
        for _ in range(4):
            await etcd.set(b"k", VALUE)
            waiting = asyncio.create_task(other.next())
            async with asyncio.timeout(SECONDS):
                while not waiting.done():
                    await asyncio.sleep(0)
                    clock.pass_by(0.1)
            assert (await waiting).events
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on(idle)
        assert caught.value.code() is grpc.StatusCode.INTERNAL, "on which etcd's clients resume a watch"

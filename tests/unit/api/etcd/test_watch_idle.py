"""A watch that waits keeps nothing of what it was told last."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from google.protobuf.message import Message

from nebuladb.pb.etcd import watch_pb2
from nebuladb.pb.nebula.v1 import kv_pb2
from tests.unit.api.etcd.faced import Faced
from tests.unit.api.etcd.http import connected
from tests.unit.api.etcd.streams import create
from tests.unit.node.lone import SECONDS

LARGE = 1 << 20
COUNT = 30
FEW = 10
"""So often a value lies about otherwise: in the store, in the log, in what was said to the client that put it."""


def of_nebula(etcd: Faced) -> Any:
    return etcd.watch(kv_pb2.WatchRequest(keyspace="etcd", key=b"k"))


def of_etcd(etcd: Faced) -> Any:
    method: Any = etcd.channel.stream_stream(
        "/etcdserverpb.Watch/Watch", watch_pb2.WatchRequest.SerializeToString, watch_pb2.WatchResponse.FromString
    )

    async def requests() -> Any:
        yield create(b"k")
        await asyncio.sleep(SECONDS)

    return method(requests())


def large() -> Iterator[object]:
    """What holds a value, each once."""
    seen: set[int] = set()
    for owner in gc.get_objects():
        if isinstance(owner, Message) and owner.ByteSize() >= LARGE:
            yield owner
        for one in gc.get_referents(owner):
            if type(one) in (bytes, bytearray) and len(one) >= LARGE and id(one) not in seen:
                seen.add(id(one))
                yield one


@pytest.mark.parametrize("watch", [of_nebula, of_etcd])
async def test_what_was_told_is_let_go(etcd: Faced, watch: Any) -> None:
    calls = [watch(etcd) for _ in range(COUNT)]
    async with asyncio.timeout(SECONDS):
        for call in calls:
            await call.read()
        await etcd.set(b"k", bytes(LARGE))
        for call in calls:
            assert len((await call.read()).events) == 1
        await etcd.set(b"another")
    assert sum(1 for _ in large()) < FEW
    for call in calls:
        call.cancel()


async def test_what_was_told_as_json_is_let_go(etcd: Faced) -> None:
    """Of the gateway each stream kept it twice."""
    async with AsyncExitStack() as stack, asyncio.timeout(SECONDS):
        streams = [await stack.enter_async_context(connected(etcd.address)) for _ in range(COUNT)]
        for http in streams:
            http.send("POST", "/v3/watch", '{"create_request":{"key":"aw=="}}')
            await http.head()
            await http.chunk()
        await etcd.set(b"k", bytes(LARGE))
        for http in streams:
            assert len(await http.chunk()) > LARGE
        await etcd.set(b"another")
        assert sum(1 for _ in large()) < FEW

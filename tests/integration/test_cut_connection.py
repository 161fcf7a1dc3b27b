"""The connection cut after a proposal left: *unknown*, or with a session the first answer; never a second execution."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from nebuladb.client import AsyncClient
from nebuladb.errors import UnknownOutcome
from tests.integration.cluster import Cluster
from tests.integration.proxy import Proxy

Write = Callable[[Any, bytes], Awaitable[Any]]


async def put(writer: Any, key: bytes) -> Any:
    return await writer.put(key, b"new")


async def compare_and_set(writer: Any, key: bytes) -> Any:
    return await writer.compare_and_set(key, b"new", expected=b"old")


async def delete(writer: Any, key: bytes) -> Any:
    return await writer.delete(key)


WRITES = [pytest.param(write, id=write.__name__) for write in (put, compare_and_set, delete)]


@contextlib.asynccontextmanager
async def cut_under(
    cluster: Cluster, client: AsyncClient, key: bytes
) -> AsyncIterator[tuple[Proxy, asyncio.Task[None]]]:
    """A proxy to one node; its connections are cut once a change of `key` shows that a write through it took effect."""
    await client.put(key, b"old")
    start = (await client.get(key)).mod_revision + 1  # type: ignore[union-attr]  # it was put just now
    async with Proxy(cluster.endpoints[0]) as proxy:

        async def cut() -> None:
            async for _ in client.watch(key, start_revision=start):
                proxy.cut()
                return

        yield proxy, asyncio.create_task(cut())


@pytest.mark.parametrize("write", WRITES)
async def test_without_a_session_the_client_is_told_unknown(
    cluster: Cluster, client: AsyncClient, write: Write
) -> None:
    key = b"cut/%s" % write.__name__.encode()
    async with cut_under(cluster, client, key) as (proxy, cut), AsyncClient([proxy.address]) as victim:
        await victim.get(key)
        before = await client.get(key)
        proxy.mute()
        with pytest.raises(UnknownOutcome):
            await write(victim, key)
        await asyncio.wait_for(cut, 10)
    after = await client.get(key)
    assert before is not None
    assert after is None if write is delete else after is not None and after.version == before.version + 1


@pytest.mark.parametrize("write", WRITES)
async def test_with_a_session_the_client_gets_the_first_answer(
    cluster: Cluster, client: AsyncClient, write: Write
) -> None:
    key = b"cut/session/%s" % write.__name__.encode()
    async with cut_under(cluster, client, key) as (proxy, cut):
        endpoints = [proxy.address, *cluster.endpoints[1:]]
        async with AsyncClient(endpoints, timeout=20) as victim, victim.session() as session:
            revision = (await session.put(b"cut/warm", b"")).revision
            proxy.mute()
            result = await write(session, key)
            await asyncio.wait_for(cut, 10)
    assert result.revision > revision
    after = await client.get(key)
    if write is delete:
        assert (result.deleted, after) == (1, None)
    else:
        assert after is not None
        assert (after.value, after.version, after.mod_revision) == (b"new", 2, result.revision)
    if write is compare_and_set:
        assert result.succeeded  # a second execution would have found "new" and failed

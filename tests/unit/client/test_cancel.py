"""What a caller cancels ends, and loses nothing but what was cancelled."""

from __future__ import annotations

import asyncio

import pytest

from nebuladb.client import AsyncClient
from nebuladb.client.transport import OPTIONS
from tests.unit.client.fake import Node


async def test_who_is_cancelled_as_it_leaves_a_keeper_ends(node: Node) -> None:
    went_on = False

    async def outer(client: AsyncClient, lease: int) -> None:
        nonlocal went_on
        task = asyncio.current_task()
        assert task is not None
        async with client.keep_alive(lease):
            asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.sleep(0)
        went_on = True

    async with AsyncClient([node.address]) as client:
        lease = (await client.grant_lease(10)).id
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(outer(client, lease))
    assert not went_on


def test_grpcio_is_told_as_well_how_long_a_ping_may_take() -> None:
    """It has two settings for it, of which the longer one rules: 60 s, if nobody says otherwise."""
    options = dict(OPTIONS)
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]

"""Members come and go, and a client that lives longer goes with them."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from nebuladb import errors
from nebuladb.client import AsyncClient
from tests.unit.client.fake import LOST, Fault, Node, wait_until

SECONDS = 10.0


async def test_the_channel_to_who_is_no_member_any_more_ends(nodes: list[Node]) -> None:
    """It tried to connect once a second for as long as the client lived, and so did one for each address that had ever
    been a member's."""
    a, b, _ = nodes
    async with AsyncClient([a.address]) as client, asyncio.timeout(SECONDS):
        assert b.address in await client.discover()
        await client.status(b.address)
        channel = weakref.ref(client._transport._links[b.address].channel)
        a.peers = [a]
        assert await client.discover() == (a.address,)
        gc.collect()
        assert channel() is None
        assert (await client.status(b.address)).name == b.name, "who is asked for by name is asked all the same"


async def test_a_watch_at_who_is_no_member_any_more_goes_on_until_the_client_is_closed(nodes: list[Node]) -> None:
    a, b, _ = nodes
    async with AsyncClient([a.address]) as client, asyncio.timeout(SECONDS):
        await client.discover()
        a.faults.append(Fault("Watch", LOST))
        events = client.watch(b"k", start_revision=2)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.to_thread(wait_until, lambda: b.count("Watch") == 1)
        a.peers = b.peers = [a]
        assert await client.discover() == (a.address,)
        gc.collect()
        await client.put(b"k", b"v")
        assert (await waiting).kv.value == b"v"
        assert (a.count("Watch"), b.count("Watch")) == (1, 1)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(errors.ClientClosed):
            await waiting

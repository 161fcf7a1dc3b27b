"""A raw client and a server, and waiting for what they come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nebuladb.rpc import Server
from nebuladb.rpc.http2 import ErrorCode
from tests.rpc.raw import RawClient
from tests.rpc.service import serving

LATER = 1e6
"""Seconds: longer than any limit."""


@asynccontextmanager
async def met(
    more: dict[str, Any] | None = None, *, settings: dict[int, int] | None = None, **options: Any
) -> AsyncIterator[tuple[RawClient, Server]]:
    """A server, and a raw client of it."""
    async with serving(more, **options) as (address, server):
        client = await RawClient.connect(address, settings=settings)
        try:
            yield client, server
        finally:
            await client.close()


async def closes(client: RawClient) -> ErrorCode:
    """How the server ends the connection."""
    code = await client.goaway()
    await client.ended()
    return ErrorCode(code)


async def passes(condition: Any) -> None:
    """Turn the loop until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0.001)


def connection(server: Server) -> Any:
    """The server's side of the one that there is."""
    (one,) = server._connections
    return one

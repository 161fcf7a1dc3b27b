"""An echo server and a channel to it, for each pair of engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import pytest
import uvloop

from nebuladb import rpc
from tests.unit.rpc.channel.echo import PAIRS, QUICK, SERVICE, Echo, Servers, idle, open_channel, until


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Production's loop, and the one that everybody has."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class World(NamedTuple):
    echo: Echo
    channel: Any
    client: str
    """Engine of the channel."""
    server: str
    """Engine of the server."""
    address: str

    @property
    def unary(self) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/Unary")

    @property
    def many(self) -> Any:
        return self.channel.unary_stream(f"/{SERVICE}/Many")

    @property
    def collect(self) -> Any:
        return self.channel.stream_unary(f"/{SERVICE}/Collect")

    @property
    def chat(self) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/Chat")


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers()
    yield servers
    await servers.stop_all()


@pytest.fixture(params=PAIRS, ids="-".join)
async def world(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[World]:
    client, server = request.param
    echo = Echo()
    size = (("grpc.max_receive_message_length", 5 << 20),)
    _, address = await servers.start(server, echo, options=size)
    async with open_channel(client, address, options=size) as channel:
        yield World(echo, channel, client, server, address)
        # Whatever a test did: in the end nothing of it is left.
        await until(lambda: idle(channel))


@pytest.fixture
async def channels() -> AsyncIterator[Any]:
    opened: list[rpc.Channel] = []

    def open_channel(target: str, **more: Any) -> rpc.Channel:
        more["options"] = (*QUICK, *more.get("options", ()))
        opened.append(rpc.insecure_channel(target, **more))
        return opened[-1]

    yield open_channel
    for channel in opened:
        await until(lambda: idle(channel))  # noqa: B023
        await channel.close()

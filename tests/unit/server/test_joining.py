"""What a node that waits to join says of why."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from nebuladb.node.identity import Identity
from nebuladb.rpc import PeerTransport
from nebuladb.rpc.engine import DEFAULT
from nebuladb.server import config, joining
from tests.unit.rpc.links import SECONDS, End


async def _client_port() -> tuple[str, Callable[[], Awaitable[object]]]:
    server = DEFAULT.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return f"127.0.0.1:{port}", lambda: server.stop(None)


async def _nobody() -> tuple[str, Callable[[], Awaitable[object]]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}", lambda: asyncio.sleep(0)


@pytest.mark.parametrize("there", [_client_port, _nobody])
async def test_where_no_member_s_peer_address_is_it_says_that_one_is_wanted(
    there: Callable[[], Awaitable[tuple[str, Callable[[], Awaitable[object]]]]],
) -> None:
    address, stop = await there()
    transport: PeerTransport = End(1).transport
    given = config.load({"name": "n4", "data-dir": "unused", "join": address}, {})
    with capture_logs() as logs:
        waits = asyncio.create_task(joining.join_cluster(given, Identity(4, "n4"), transport))
        async with asyncio.timeout(SECONDS):
            while not logs:  # noqa: ASYNC110
                await asyncio.sleep(0)
        waits.cancel()
    await stop()
    assert logs[0]["event"] == "waiting to join"
    assert logs[0]["why"].startswith(f"no member's peer address answers at {address}: ")

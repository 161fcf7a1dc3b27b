"""Trailers of a request, which gRPC doesn't have and HTTP does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from nebuladb.rpc import ServerLimits
from nebuladb.rpc.framing import frame
from nebuladb.rpc.http2 import Fields
from nebuladb.rpc.http2.frames import settings_frame
from tests.unit.rpc.serving.wired import LATER, Wired, chatting, serving, unary, until

LIMITS: Final = ServerLimits(sweep_seconds=LATER, keepalive_seconds=LATER)
TRAILERS: Final[Fields] = ((b"x-checksum", b"1"),)
STREAM_WINDOW: Final = 4
"""The setting's number."""


async def window(wired: Wired, size: int) -> None:
    """The client changes what each of its streams takes."""
    wired.client._unacknowledged += 1
    await wired.hear(settings_frame({STREAM_WINDOW: size}))


@pytest.mark.parametrize("answered", [True, False])
async def test_they_end_the_request_and_cost_no_other_call(answered: bool) -> None:
    async def first(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
            if answered:
                return

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    async with serving(LIMITS, {"First": chatting(first), "Echo": unary(echo)}) as server:
        wired = Wired(server)
        await window(wired, 0)
        stream = wired.open("First")
        wired.client.send_data(stream, frame(b"x"))
        other = wired.call("Echo", b"y")
        await wired.say()
        await until(lambda: wired.connection.http2.streams[stream.id].waiting > 0)
        await until(lambda: server.calls == (0 if answered else 1))
        wired.client.send_headers(stream, TRAILERS, end=True)
        await wired.say()
        await window(wired, 1 << 16)
        await until(lambda: server.calls == 0)
        await until(lambda: bool(wired.read()) or len(wired.statuses()) == 2)
        assert wired.statuses() == {stream.id: b"0", other.id: b"0"}
        wired.connection.http2.check()
        assert not wired.connection.http2.streams

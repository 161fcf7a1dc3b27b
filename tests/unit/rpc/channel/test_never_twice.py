"""A call that is begun again on another connection leaves by that one only: else a write would run twice."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from nebuladb import rpc
from nebuladb.rpc import http2
from nebuladb.rpc.framing import PREFIX_BYTES
from nebuladb.rpc.http2 import HeadersReceived
from tests.unit.rpc.channel.echo import SECONDS, unary, until
from tests.unit.rpc.channel.scripted import Peer, Scripted

PUSH_PROMISE = b"\0\0\0\x05\0\0\0\0\2"
"""Which ends any client's connection."""


def half_closed(peer: Peer) -> None:
    """It, or a proxy before it, says that it is done, and still reads what is on its way."""
    with socket.socket(fileno=os.dup(peer.transport.get_extra_info("socket").fileno())) as behind:
        behind.shutdown(socket.SHUT_WR)


def broken(peer: Peer) -> None:
    peer.transport.write(PUSH_PROMISE)


@pytest.mark.parametrize("ends", [half_closed, broken])
async def test_when_the_connection_ends_in_the_turn_of_the_call(channels: Any, ends: Callable[[Peer], None]) -> None:
    runs: Counter[bytes] = Counter()

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            runs[bytes(event.data or b"")[PREFIX_BYTES:]] += 1
            peer.answer(event.stream)

    async with Scripted(script) as server:
        channel = channels(server.address)
        for number in range(20):
            await unary(channel)(b"first")
            peer = server.peers[-1]
            ends(peer)
            await asyncio.sleep(0)
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(unary(channel)(b"write %d" % number), return_exceptions=True)
            await until(lambda peer=peer: peer.lost)
        assert all(runs[b"write %d" % number] <= 1 for number in range(20)), runs


async def test_when_a_silent_server_wakes_up_as_it_is_given_up(channels: Any) -> None:
    runs: Counter[bytes] = Counter()

    def script(peer: Peer, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            runs[bytes(event.data or b"")[PREFIX_BYTES:]] += 1
            peer.answer(event.stream)

    options = (("grpc.keepalive_time_ms", 50), ("grpc.keepalive_timeout_ms", 50))
    async with Scripted(script, http2.Limits().with_streams(22_000)) as server:
        channel: rpc.Channel = channels(server.address, options=options)
        await unary(channel)(b"first")
        (peer,) = server.peers
        peer.transport.pause_reading()  # stopped, or behind a partition
        calls: list[Any] = []
        async with asyncio.timeout(SECONDS):
            while len(server.peers) == 1:  # until the next connection stands
                calls.append(unary(channel)(b"write %d" % len(calls)))
                await asyncio.sleep(0)
            peer.transport.resume_reading()
            await asyncio.gather(*calls, return_exceptions=True)
            await until(lambda: peer.lost)
        assert len(calls) > 100
        assert max(runs[b"write %d" % number] for number in range(len(calls))) == 1

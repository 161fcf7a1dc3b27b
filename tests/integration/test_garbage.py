"""Garbage on the ports, and connections that say nothing, harm nobody."""

from __future__ import annotations

import contextlib
import random
import socket

from nebuladb.client import AsyncClient
from tests.integration.cluster import Cluster

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SILENT = 200


def garbage() -> list[bytes]:
    """Things that are no gRPC, or stop being it."""
    rng = random.Random(7)
    settings = b"\0\0\0\x04\0\0\0\0\0"
    return [
        b"",
        b"GET / HTTP/1.1\r\nHost: nebula\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + rng.randbytes(200),
        rng.randbytes(100_000),
        PREFACE,
        PREFACE + rng.randbytes(50_000),
        PREFACE + settings + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + rng.randbytes(100_000),
        PREFACE + settings + b"\0\0\x05\x01\x04\0\0\0\x01" + b"\xff" * 5,
        *(PREFACE + settings + rng.randbytes(rng.randrange(1, 4_000)) for _ in range(40)),
    ]


def throw(address: str) -> None:
    host, _, port = address.rpartition(":")
    for data in garbage():
        with socket.create_connection((host, int(port)), timeout=10) as connection, contextlib.suppress(OSError):
            connection.sendall(data)
            connection.settimeout(0.05)
            connection.recv(1 << 16)


async def test_garbage_and_silence_on_every_port_harm_nobody(cluster: Cluster, client: AsyncClient) -> None:
    with contextlib.ExitStack() as stack:
        for member in cluster.members:
            config = member.config
            for address in (config.client_addr, config.peer_addr, config.admin_addr):
                host, _, port = address.rpartition(":")
                for _ in range(SILENT // 3):
                    stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                throw(address)
        terms = [cluster.leadership(group) for group in (1, 2, 3)]
        for number in range(200):
            await client.put(b"garbage/%d" % number, b"%d" % number)
        for endpoint in cluster.endpoints:
            async with AsyncClient([endpoint]) as one:
                assert len([row async for row in one.scan(b"garbage/", b"garbage0")]) == 200
        assert [cluster.leadership(group) for group in (1, 2, 3)] == terms
    assert len(cluster.running) == 3
    for node in cluster.all:
        assert cluster.ready(node)

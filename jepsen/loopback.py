"""Loopback addresses, with a proxy before each node's peer port that can hold back, slow down and stall.

All nodes call node j at one address, for they must agree on it; who it is that calls is found by the process that has
the connection's other end. What is blocked is held back, as TCP's sender would: it comes later if the connection lives
so long. A lost packet is one that comes after a retransmission time-out, and holds up what is behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Final

from jepsen import sockets
from jepsen.network import Addresses, Delay, Network, NetworkError
from jepsen.partitions import NOBODY, Pairs
from jepsen.sockets import LOOPBACK
from nebuladb.server.dev import PORTS_PER_NODE
from tests.integration.cluster import Ports

CHUNK: Final = 1 << 14
QUEUE: Final = 256
"""Chunks under way in one direction of a connection."""
RETRANSMISSION: Final = (0.2, 0.4)
"""Seconds until a lost packet is sent again."""


class Loopback(Network):
    """Node i has the ports base+100·i to +2, as ``nebulad dev`` gives them."""

    name = "proxies"

    def __init__(self, nodes: int, rng: random.Random) -> None:
        self._nodes = nodes
        self._rng = rng
        self._ports: Ports | None = None
        self._servers: list[asyncio.Server] = []
        self._pipes: set[asyncio.Task[None]] = set()
        self._blocked = NOBODY
        self._delay: Delay | None = None
        self._changed = asyncio.Event()
        self._held = self._slowed = 0
        """Chunks, since the last change."""
        self._pid: Callable[[int], int | None] = lambda _: None

    def watch(self, pid: Callable[[int], int | None]) -> None:
        self._pid = pid

    async def open(self) -> list[Addresses]:
        if not sockets.known():
            raise NetworkError("the kernel does not tell who calls (sock_diag), so that proxies can't part nodes here")
        self._ports = Ports(self._nodes)
        found = []
        for node in range(self._nodes):
            client, peer, admin = (f"{LOOPBACK}:{self._ports.base + PORTS_PER_NODE * node + n}" for n in range(3))
            server = await asyncio.start_server(self._acceptor(node, peer), LOOPBACK, 0)
            self._servers.append(server)
            found.append(Addresses(client, peer, admin, f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"))
        return found

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        if self._ports is not None:
            self._ports.close()

    async def block(self, pairs: Pairs) -> int:
        held, self._held = self._held, 0
        self._blocked = pairs
        self._changed.set()
        self._changed = asyncio.Event()
        return held

    async def delay(self, delay: Delay | None) -> int:
        slowed, self._slowed = self._slowed, 0
        self._delay = delay
        return slowed

    def _acceptor(self, node: int, target: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._join(node, target, reader, writer))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

        return accept

    async def _join(self, node: int, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it."""
        writers = [writer]
        try:
            peer, ours = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
            caller = self._caller(peer[1], ours[1]) if peer else None
            if caller is None:
                return
            host, _, port = target.rpartition(":")
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection(host, int(port))
                writers.append(back)
                pipes = [
                    asyncio.create_task(self._carry(reader, back, (caller, node))),
                    asyncio.create_task(self._carry(there, writer, (node, caller))),
                ]
                try:
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in pipes:
                        pipe.cancel()
                    await asyncio.gather(*pipes, return_exceptions=True)
        finally:
            for each in writers:
                each.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: tuple[int, int]) -> None:
        """One direction. Ends with its source."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(QUEUE)

        async def deliver() -> None:
            while (piece := await under_way.get()) is not None:
                due, data = piece
                await asyncio.sleep(due - loop.time())
                while way in self._blocked:
                    self._held += 1
                    await self._changed.wait()
                sink.write(data)
                await sink.drain()

        delivery = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(CHUNK):
                    await under_way.put((loop.time() + self._late(), data))
                await under_way.put(None)
                await delivery
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)

    def _late(self) -> float:
        """Seconds for which the next chunk is held back."""
        delay = self._delay
        if delay is None:
            return 0.0
        self._slowed += 1
        seconds = (delay.ms + self._rng.uniform(-delay.jitter_ms, delay.jitter_ms)) / 1000
        if self._rng.random() < delay.loss:
            seconds += self._rng.uniform(*RETRANSMISSION)
        return max(seconds, 0.0)

    def _caller(self, port: int, ours: int) -> int | None:
        """The node whose process has the connection from this port to one of ours; None if there is none (any more)."""
        number = sockets.inode(port, ours)
        for node in range(self._nodes) if number else ():
            pid = self._pid(node)
            if pid is not None and sockets.has(pid, number):
                return node
        return None

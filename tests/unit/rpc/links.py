"""Transports with links between them, and what they told their owners."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

from nebuladb.errors import IdentityError
from nebuladb.pb.nebula.peer.v1 import peer_pb2 as pb
from nebuladb.rpc.engine import DEFAULT, Engine
from nebuladb.rpc.peer import PeerTransport

SECONDS = 20.0


class End:
    """One transport and what it told its owner."""

    def __init__(self, node: int, engine: Engine = DEFAULT) -> None:
        self.node = node
        self.incarnation = node * 100
        self.links: list[str] = []
        self.frames: list[tuple[int, bytes]] = []
        self.refuses = False
        self.told: list[str] = []
        """Why others refused this one."""
        self.error: Exception | None = None
        self.checks = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.transport = PeerTransport(node, self, random.Random(node), engine)

    def hello(self, request: pb.HelloRequest) -> pb.HelloResponse:
        return pb.HelloResponse(name=f"n{self.node}")

    async def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        return pb.JoinResponse(wait=f"n{self.node} has no room for {request.name}")

    def found(self, request: pb.FoundRequest) -> bytes:
        return b"document"

    def lags(self, request: pb.LagsRequest) -> pb.LagsResponse:
        return pb.LagsResponse(lags=[pb.Lag(group=self.node, lacks=request.node_id)])

    def handshake(self, node: int) -> pb.Handshake:
        return pb.Handshake(node_id=self.node, incarnation=self.incarnation, receiver=node)

    def check(self, handshake: pb.Handshake) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error
        if self.refuses:
            raise IdentityError("not one of us")

    def refused(self, why: str) -> None:
        self.told.append(why)

    def peer_up(self, handshake: pb.Handshake) -> None:
        self.links.append(f"up {handshake.node_id}")

    def peer_down(self, node: int) -> None:
        self.links.append(f"down {node}")

    def frame(self, node: int, frame: bytes) -> None:
        self.frames.append((node, frame))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)

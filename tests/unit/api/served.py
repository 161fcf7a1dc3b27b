"""One node in memory, served as the daemon serves it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import grpc.aio

from nebuladb.api.backend import Backend
from nebuladb.api.services import ApiServer
from nebuladb.pb.nebula.v1 import common_pb2, kv_pb2
from nebuladb.rpc.engine import DEFAULT, Engine
from tests.unit.node.lone import SECONDS, Lone


class Meter:
    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        """The method and the code of each call."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        self.ended.append((method, code))


class Served(Lone):
    """A node with a client port, and a channel to it."""

    options: Sequence[tuple[str, int]] = ()
    """The channel's."""

    async def open(self, engine: Engine = DEFAULT) -> None:
        await self.serve()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.backend = Backend(self.pump)
        self.meter = Meter()
        self.api = ApiServer(self.backend, self.meter, self.address, "", engine)
        await self.api.start(self.address)
        self.channel = engine.insecure_channel(self.address, options=self.options)

    async def get(self, request: kv_pb2.GetRequest) -> kv_pb2.GetResponse:
        call = self.channel.unary_unary(
            "/nebula.v1.KV/Get", kv_pb2.GetRequest.SerializeToString, kv_pb2.GetResponse.FromString
        )
        response: kv_pb2.GetResponse = await call(request, timeout=SECONDS)
        return response

    def watch(self, request: kv_pb2.WatchRequest) -> Any:
        call = self.channel.unary_stream(
            "/nebula.v1.KV/Watch", kv_pb2.WatchRequest.SerializeToString, kv_pb2.WatchResponse.FromString
        )
        return call(request)

    async def close(self) -> None:
        await self.channel.close()
        await self.api.stop(0)
        await self.pump.stop()


def error_detail(status: grpc.aio.AioRpcError) -> common_pb2.ErrorDetail:
    """What the server says of an error beside its code and text."""
    metadata = dict(status.trailing_metadata() or ())
    return common_pb2.ErrorDetail.FromString(bytes(metadata["nebula-error-bin"]))

"""A node in memory with the etcd face on its client port, and calls to it in few words."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from nebuladb.pb.etcd import kv_pb2 as pb
from tests.unit.api.served import Served
from tests.unit.node.lone import SECONDS

RESPONSES: dict[str, Any] = {
    "Range": pb.RangeResponse,
    "Put": pb.PutResponse,
    "DeleteRange": pb.DeleteRangeResponse,
    "Txn": pb.TxnResponse,
    "Compact": pb.CompactionResponse,
}
UNBOUNDED = (("grpc.max_receive_message_length", -1),)


class Faced(Served):
    """One node, served."""

    options = UNBOUNDED

    async def call(self, method: str, request: Any, **options: Any) -> Any:
        """The response of a KV method; `request` may be bytes."""
        response = RESPONSES[method]
        call = self.channel.unary_unary(
            f"/etcdserverpb.KV/{method}",
            lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response.FromString,
        )
        return await asyncio.wait_for(call(request, timeout=SECONDS, **options), SECONDS)

    async def stream(self, request: pb.RangeRequest) -> list[pb.RangeResponse]:
        """What RangeStream sends."""
        call = self.channel.unary_stream(
            "/etcdserverpb.KV/RangeStream", pb.RangeRequest.SerializeToString, pb.RangeStreamResponse.FromString
        )
        async with asyncio.timeout(SECONDS):
            return [chunk.range_response async for chunk in call(request, timeout=SECONDS)]

    async def range(self, key: bytes, end: bytes = b"", **fields: Any) -> pb.RangeResponse:
        return await self.call("Range", pb.RangeRequest(key=key, range_end=end, **fields))  # type: ignore[no-any-return]

    async def set(self, key: bytes, value: bytes = b"v", **fields: Any) -> Any:
        return await self.call("Put", pb.PutRequest(key=key, value=value, **fields))

    async def refused(self, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        """The code and the text with which a call fails."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request)
        return caught.value.code(), caught.value.details() or ""

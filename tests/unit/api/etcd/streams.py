"""Streams of both ways, and calls of the other services, in few words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import pytest

from nebuladb.pb.etcd import election_pb2, lease_pb2, lock_pb2
from nebuladb.pb.etcd import watch_pb2 as pb
from tests.unit.api.etcd.faced import Faced
from tests.unit.node.lone import SECONDS

METHODS: dict[str, tuple[str, Any]] = {
    "LeaseGrant": ("etcdserverpb.Lease", lease_pb2.LeaseGrantResponse),
    "LeaseRevoke": ("etcdserverpb.Lease", lease_pb2.LeaseRevokeResponse),
    "LeaseTimeToLive": ("etcdserverpb.Lease", lease_pb2.LeaseTimeToLiveResponse),
    "LeaseLeases": ("etcdserverpb.Lease", lease_pb2.LeaseLeasesResponse),
    "Lock": ("v3lockpb.Lock", lock_pb2.LockResponse),
    "Unlock": ("v3lockpb.Lock", lock_pb2.UnlockResponse),
    "Campaign": ("v3electionpb.Election", election_pb2.CampaignResponse),
    "Proclaim": ("v3electionpb.Election", election_pb2.ProclaimResponse),
    "Leader": ("v3electionpb.Election", election_pb2.LeaderResponse),
    "Resign": ("v3electionpb.Election", election_pb2.ResignResponse),
}
GROUP = 3
"""The keyspace `etcd`."""


def begin(etcd: Faced, request: Any, **options: Any) -> Any:
    """A call of the method that `request` belongs to; to be awaited, or cancelled."""
    name = type(request).__name__.removesuffix("Request")
    service, response = METHODS[name]
    return etcd.channel.unary_unary(
        f"/{service}/{name}", type(request).SerializeToString, response.FromString
    )(request, timeout=SECONDS, **options)  # fmt: skip


async def ask(etcd: Faced, request: Any, **options: Any) -> Any:
    """Its response."""
    return await asyncio.wait_for(begin(etcd, request, **options), SECONDS)


async def refused(etcd: Faced, request: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    """The code and the text with which it fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(etcd, request, **options)
    return caught.value.code(), caught.value.details() or ""


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is so."""
    async with asyncio.timeout(SECONDS):
        while not await look():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Both:
    """A stream of both ways: `send`, and `next` for what comes."""

    def __init__(self, etcd: Faced, path: str, response: Any, metadata: Any = ()) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        method: Any = etcd.channel.stream_stream(path, lambda message: message.SerializeToString(), response.FromString)
        self.call = method(self._sent(), metadata=metadata)
        self._responses = self.call.__aiter__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call.cancel()

    async def _sent(self) -> AsyncIterator[Any]:
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, *requests: Any) -> None:
        """Ask; None: there will be no more."""
        for request in requests:
            self._requests.put_nowait(request)

    async def next(self) -> Any:
        """What comes next."""
        return await asyncio.wait_for(anext(self._responses), SECONDS)

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """The status, once nothing more comes."""
        try:
            async with asyncio.timeout(SECONDS):
                async for response in self._responses:
                    raise AssertionError(f"the stream goes on: {response}")
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return await self.call.code(), await self.call.details() or ""


def watching(etcd: Faced, metadata: Any = ()) -> Both:
    """A stream of watches."""
    return Both(etcd, "/etcdserverpb.Watch/Watch", pb.WatchResponse, metadata)


def keeping(etcd: Faced, metadata: Any = ()) -> Both:
    """A stream of keep-alives."""
    return Both(etcd, "/etcdserverpb.Lease/LeaseKeepAlive", lease_pb2.LeaseKeepAliveResponse, metadata)


def create(key: bytes = b"k", end: bytes = b"", start: int = 0, **fields: Any) -> pb.WatchRequest:
    """A request for a watch."""
    made = pb.WatchCreateRequest(key=key, range_end=end, start_revision=start, **fields)
    return pb.WatchRequest(create_request=made)


def cancel(watch_id: int) -> pb.WatchRequest:
    """A request to end one."""
    return pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))


PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


def lose_leader(etcd: Faced) -> None:
    """From now on the node knows of no leader."""
    etcd.node.host.step_down(GROUP)
    assert not etcd.backend.leader(GROUP)


async def made(stream: Both, *requests: pb.WatchRequest) -> list[int]:
    """The ids of watches, of which nothing is to be told yet."""
    stream.send(*requests)
    responses = [await stream.next() for _ in requests]
    assert all(response.created and not response.canceled and not response.events for response in responses)
    return [response.watch_id for response in responses]

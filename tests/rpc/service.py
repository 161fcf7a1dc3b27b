"""What the tests' servers do, and a server for a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from nebuladb import rpc
from nebuladb.rpc.serving import Server

SERVICE: Final = "nebula.test.Echo"


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def echo_later(request: bytes, context: Any) -> bytes:
    await asyncio.sleep(0)
    return request


async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


async def count_by_context(request: bytes, context: Any) -> None:
    for number in range(int(request)):
        await context.write(b"%d" % number)


async def total(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"%d" % sum([len(request) async for request in requests])


async def total_by_context(_: object, context: Any) -> bytes:
    size = 0
    while (request := await context.read()) is not grpc.aio.EOF:
        size += len(request)
    return b"%d" % size


async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def chat_by_context(_: object, context: Any) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


def plain_echo(request: bytes, context: Any) -> bytes:
    return request


def plain_count(request: bytes, context: Any) -> Iterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


def plain_total(requests: Iterator[bytes], context: Any) -> bytes:
    return b"%d" % sum(len(request) for request in requests)


def plain_chat(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield from requests


HANDLERS: Final[dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "EchoLater": grpc.unary_unary_rpc_method_handler(echo_later),
    "PlainEcho": grpc.unary_unary_rpc_method_handler(plain_echo),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "CountByContext": grpc.unary_stream_rpc_method_handler(count_by_context),
    "PlainCount": grpc.unary_stream_rpc_method_handler(plain_count),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "TotalByContext": grpc.stream_unary_rpc_method_handler(total_by_context),
    "PlainTotal": grpc.stream_unary_rpc_method_handler(plain_total),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "ChatByContext": grpc.stream_stream_rpc_method_handler(chat_by_context),
    "PlainChat": grpc.stream_stream_rpc_method_handler(plain_chat),
}


def handlers(more: dict[str, Any] | None = None) -> grpc.GenericRpcHandler:
    """Of `SERVICE`: those above, and `more`, by kind's name: {"Name": ("unary_unary", function)}."""
    found = dict(HANDLERS)
    for name, (kind, function) in (more or {}).items():
        found[name] = getattr(grpc, f"{kind}_rpc_method_handler")(function)
    return grpc.method_handlers_generic_handler(SERVICE, found)


@asynccontextmanager
async def serving(
    more: dict[str, Any] | None = None, *, added: Sequence[grpc.GenericRpcHandler] = (), **options: Any
) -> AsyncIterator[tuple[str, Server]]:
    """A started server, and its address."""
    server = rpc.server(handlers=(handlers(more), *added), **options)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


@asynccontextmanager
async def channel_to(address: str, **arguments: Any) -> AsyncIterator[Any]:
    """grpcio's asynchronous channel; its type knows nothing of bytes as messages."""
    async with grpc.aio.insecure_channel(address, **arguments) as channel:
        yield channel


def path(method: str) -> str:
    return f"/{SERVICE}/{method}"

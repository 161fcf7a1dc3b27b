"""The kinds of call, as coroutines that run a handler. `Call.finish` takes what they return.

A unary-unary coroutine handler needs none of these: its connection runs it directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final

import grpc
import grpc.aio

from nebuladb.rpc.server.call import Call
from nebuladb.rpc.server.routes import CallDetails, Route, awaited
from nebuladb.rpc.status import StatusError

_END: Final = object()


class Requests:
    """What a handler of streaming requests iterates over; `Call.read` as an iterator."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        call = self._call
        message = call.take()
        if message is not None:
            return call.decode(message)
        request = await call.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return request


class _Blocking:
    """`Requests` for a handler in a thread."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        request = asyncio.run_coroutine_threadsafe(self._call.read(), self._call.connection.server.loop).result()
        if request is grpc.aio.EOF:
            raise StopIteration
        return request


def start(call: Call, route: Route, message: bytes | None) -> Coroutine[Any, Any, Any]:
    """What runs `route` for `call`; `message` is a unary request. Raises `StatusError` if that doesn't parse."""
    if message is not None:
        request = call.decode(message)
        if route.direct:
            coroutine: Coroutine[Any, Any, Any] = route.behaviour(request, call)
            return coroutine
    else:
        request = Requests(call) if route.native else _Blocking(call)
    if not route.native:
        return _in_thread(call, route, request)
    if route.generator:
        return _generated(call, route, request)
    return _plain(call, route, request)


async def _plain(call: Call, route: Route, request: Any) -> Any:
    """A coroutine: it returns the response, or writes responses to its context."""
    return await route.behaviour(request, call)


async def _generated(call: Call, route: Route, request: Any) -> None:
    """An async generator of responses."""
    responses = route.behaviour(request, call)
    put = call.put
    try:
        async for response in responses:
            if put(response):
                await call.room()
    finally:
        # Not left to the collector: a generator that holds a lock or a watch must let go when its call ends.
        await responses.aclose()


async def _in_thread(call: Call, route: Route, request: Any) -> Any:
    """A plain function. It may block, so it runs in the server's threads (or the loop's)."""
    loop, pool = call.connection.server.loop, call.connection.server.thread_pool
    result = await awaited(await loop.run_in_executor(pool, route.behaviour, request, call))
    if not route.response_streaming:
        return result
    if hasattr(result, "__aiter__"):
        async for response in result:
            await call.write(response)
    elif result is not None:
        responses = iter(result)
        while (response := await loop.run_in_executor(pool, next, responses, _END)) is not _END:
            await call.write(response)
    return None


async def resolved(call: Call) -> Any:
    """Any kind, where interceptors decide which handler it is."""
    request = call.request
    route = await call.connection.server.routes.resolve(CallDetails(request.path, request.metadata()))
    if route is None:
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"no method {request.path[:200]} here")
    call.route = route
    message = None if route.request_streaming else await call.one()
    return await start(call, route, message)

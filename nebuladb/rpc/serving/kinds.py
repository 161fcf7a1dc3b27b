"""The kinds of call, as coroutines that run a handler. `Call.finish` takes what they return.

A unary-unary coroutine handler needs none of these: its connection runs it directly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc
import grpc.aio

from nebuladb.rpc.serving import plain
from nebuladb.rpc.serving.call import Call
from nebuladb.rpc.serving.routes import CallDetails, Route
from nebuladb.rpc.status import StatusError


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


def start(call: Call, route: Route, message: bytes | None) -> Coroutine[Any, Any, Any]:
    """What runs `route` for `call`; `message` is a unary request. Raises `StatusError` if that doesn't parse."""
    if message is not None:
        request = call.decode(message)
        if route.direct:
            coroutine: Coroutine[Any, Any, Any] = route.behaviour(request, call)
            return coroutine
    else:
        request = Requests(call) if route.native else plain.Requests(call)
    if not route.native:
        return plain.run(call, route, request)
    if route.generator:
        return _generated(call, route, request)
    return _awaited(call, route, request)


async def _awaited(call: Call, route: Route, request: Any) -> Any:
    """A coroutine: it returns the response, or writes responses to its context."""
    return await route.behaviour(request, call)


async def _generated(call: Call, route: Route, request: Any) -> None:
    """An async generator of responses."""
    responses = route.behaviour(request, call)
    put = call.put
    try:
        async for response in responses:
            full = put(response)
            del response  # the next one may be long in coming
            if full:
                await call.room()
    finally:
        # Not left to the collector: a generator that holds a lock or a watch must let go when its call ends.
        await responses.aclose()


async def resolved(call: Call) -> Any:
    """Any kind, where interceptors decide which handler it is."""
    request = call.request
    route = await call.connection.server.routes.resolve(CallDetails(request.path, request.metadata()))
    if route is None:
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, call.connection.server.routes.unknown(request.path))
    call.route = route
    message = None if route.request_streaming else await call.one()
    return await start(call, route, message)

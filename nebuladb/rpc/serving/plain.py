"""Handlers that are plain functions, as in grpc's threaded server: they may block, so they run in threads."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Callable, Iterator
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from nebuladb.rpc.serving.call import Call
from nebuladb.rpc.serving.exchange import MetadataLike
from nebuladb.rpc.serving.routes import Route

_END: Final = object()


class Context(grpc.ServicerContext):
    """What such a handler sees of its call: `Call`, without anything to await."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Raise what ends the call with this status when it arrives in the loop."""
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, f"aborted with OK: {details}"
        self._call.set_code(code)
        self._call.set_details(details)
        raise grpc.aio.AbortError("the call was aborted")

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._call.set_trailing_metadata(tuple(status.trailing_metadata or ()))
        self.abort(status.code, status.details)

    def send_initial_metadata(self, initial_metadata: MetadataLike) -> None:
        call = self._call
        asyncio.run_coroutine_threadsafe(call.send_initial_metadata(initial_metadata), _loop(call)).result()

    def set_trailing_metadata(self, trailing_metadata: MetadataLike) -> None:
        self._call.set_trailing_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._call.trailing_metadata()

    def invocation_metadata(self) -> Any:
        return self._call.invocation_metadata()

    def set_code(self, code: grpc.StatusCode) -> None:
        self._call.set_code(code)

    def code(self) -> grpc.StatusCode:
        return self._call.code()

    def set_details(self, details: str) -> None:
        self._call.set_details(details)

    def details(self) -> Any:
        return self._call.details()

    def set_compression(self, compression: grpc.Compression) -> None:
        self._call.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        self._call.disable_next_message_compression()

    def peer(self) -> str:
        return self._call.peer()

    def peer_identities(self) -> Any:
        return self._call.peer_identities()

    def peer_identity_key(self) -> str | None:
        return self._call.peer_identity_key()

    def auth_context(self) -> Any:
        return self._call.auth_context()

    def time_remaining(self) -> Any:
        return self._call.time_remaining()

    def is_active(self) -> bool:
        return not self._call.done()

    def cancel(self) -> bool:
        """End the call, CANCELLED."""
        _loop(self._call).call_soon_threadsafe(
            self._call.end, grpc.StatusCode.CANCELLED, "the handler cancelled the call"
        )
        return True

    def add_callback(self, callback: Callable[[], Any]) -> bool:
        """Call `callback` when the call is over; False if it is."""
        if self._call.done():
            return False
        self._call.add_done_callback(lambda _: callback())
        return True


class Requests:
    """A request stream for a handler in a thread."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        request = asyncio.run_coroutine_threadsafe(self._call.read(), _loop(self._call)).result()
        if request is grpc.aio.EOF:
            raise StopIteration
        return request


async def run(call: Call, route: Route, request: Any) -> Any:
    """A plain function: a response, or an iterable of them. One that returns something to await has it awaited here."""
    loop, pool = _loop(call), call.connection.server.thread_pool
    result = await loop.run_in_executor(pool, route.behaviour, request, Context(call))
    if inspect.isawaitable(result):
        result = await result
    if not route.response_streaming:
        return result
    if isinstance(result, AsyncIterable):
        async for response in result:
            await call.write(response)
    elif result is not None:
        responses = iter(result)
        while (response := await loop.run_in_executor(pool, next, responses, _END)) is not _END:
            await call.write(response)
    return None


def _loop(call: Call) -> asyncio.AbstractEventLoop:
    return call.connection.server.loop

"""The calls as the application sees them: grpc.aio's call objects, in front of an `Rpc`.

The face of a streaming call is not the object that its connection keeps, so that a call which nobody holds any more is
collected, and cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from time import monotonic
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from nebuladb.env import probe
from nebuladb.rpc.channel.rpc import COLLECTED, OK, Rpc, UnaryResponse
from nebuladb.rpc.channel.streams import RequestStream, StreamResponse, StreamStreamRpc, StreamUnaryRpc

Request = TypeVar("Request")
Response = TypeVar("Response")
Requests = AsyncIterable[Request] | Iterable[Request]

MIXED: str = "The iterator and read/write APIs may not be mixed on a single RPC."


class Face:
    """What the calls of all kinds have in common."""

    _rpc: Rpc
    _callbacks: list[Callable[[Any], None]] | None = None

    async def initial_metadata(self) -> grpc.aio.Metadata:
        await self._rpc.begun()
        return self._rpc.initial()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*(await self._rpc.ended()).trailing)

    async def code(self) -> grpc.StatusCode:
        return (await self._rpc.ended()).code

    async def details(self) -> str:
        return (await self._rpc.ended()).details

    async def debug_error_string(self) -> str:
        """What happened and where, for logs; empty after success."""
        if (await self._rpc.ended()).code is OK:
            return ""
        error = self._rpc.error()
        return (error.debug_error_string() or "") if isinstance(error, grpc.aio.AioRpcError) else ""

    async def wait_for_connection(self) -> None:
        await self._rpc.opened()
        status = self._rpc.status
        if status is not None and status.code is not OK:
            raise self._rpc.error()

    def cancelled(self) -> bool:
        status = self._rpc.status
        return status is not None and status.code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._rpc.status is not None

    def time_remaining(self) -> float | None:
        deadline = self._rpc.deadline
        return None if deadline is None else max(0.0, deadline - monotonic())

    def cancel(self) -> bool:
        return self._rpc.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Called with this object when the status is known; at once if it is."""
        if self.done():
            callback(self)
            return
        if self._callbacks is None:
            self._callbacks = []
            # Weakly: what waits for a call's end must not keep the call from being collected.
            self._rpc.on_status = _Callbacks(self)
        self._callbacks.append(callback)

    def run_callbacks(self) -> None:
        """The status is known. A callback's error is the loop's to report: it is no error of the call."""
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception as error:
                self._rpc.core.loop.call_exception_handler(
                    {"message": "a call's done callback failed", "exception": error}
                )

    def __repr__(self) -> str:
        status = self._rpc.status
        how = f"{status.code.name} {status.details!r}" if status is not None else "running"
        return f"<{type(self).__name__} {self._rpc.method.path}: {how}>"


class _Callbacks:
    def __init__(self, face: Face) -> None:
        self._face = weakref.ref(face)

    def __call__(self) -> None:
        face = self._face()
        if face is not None:
            face.run_callbacks()


class UnaryUnaryCall(UnaryResponse, Face, grpc.aio.UnaryUnaryCall[Request, Response], Generic[Request, Response]):
    """One message each way: face and `Rpc` in one object, since nobody needs to hold it for it to end."""

    cancel = UnaryResponse.cancel

    @property
    def _rpc(self) -> Rpc:  # type: ignore[override]
        return self

    def __await__(self) -> Generator[Any, None, Response]:
        if self.status is None:
            try:
                yield from self.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result()  # type: ignore[no-any-return]


class _Collected(Face):
    """A call that ends when nobody holds it any more."""

    def __del__(self) -> None:
        rpc = self.__dict__.get("_rpc")
        if rpc is None or rpc.status is not None:
            return
        # The collector runs anywhere, in other threads and in the midst of a connection's work: the loop cancels later.
        with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
            rpc.core.loop.call_soon_threadsafe(_abandoned, rpc)


def _abandoned(rpc: Rpc) -> None:
    probe("rpc: an abandoned call is cancelled")
    rpc.cancel(COLLECTED)


class _Reads(_Collected, Generic[Response]):
    """Reading an answer that is a stream."""

    _rpc: StreamResponse
    _style = 0

    def __aiter__(self) -> AsyncIterator[Response]:
        if self._style == 2:
            raise grpc.aio.UsageError(MIXED)
        self._style = 1
        return self

    async def __anext__(self) -> Any:
        message = await self._next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        if self._style == 1:
            raise grpc.aio.UsageError(MIXED)
        self._style = 2
        message = await self._next()
        return grpc.aio.EOF if message is None else message

    async def _next(self) -> Any:
        rpc = self._rpc
        while True:
            message = rpc.take()
            if message is not None:
                deserializer = rpc.method.deserializer
                return message if deserializer is None else deserializer(message)
            if rpc.status is not None:
                if rpc.status.code is OK:
                    return None
                raise rpc.error()
            try:
                await rpc.readable()
            except asyncio.CancelledError:
                rpc.cancel()
                raise


class _Writes(_Collected, Generic[Request]):
    """Writing a request that is a stream: by an iterator that the call consumes, or by `write`."""

    _rpc: RequestStream

    def _begin(self, requests: Requests[Request] | None) -> None:
        self._rpc.start()
        if requests is not None:
            self._rpc.pump = self._rpc.core.loop.create_task(_consume(self._rpc, requests))

    async def write(self, request: Request) -> None:
        """Send a message; returns when the next one may come."""
        if self._rpc.pump is not None:
            raise grpc.aio.UsageError(MIXED)
        await _write(self._rpc, request)

    async def done_writing(self) -> None:
        """Say that the request is complete."""
        if self._rpc.pump is not None:
            raise grpc.aio.UsageError(MIXED)
        await _half_close(self._rpc)


async def _write(rpc: RequestStream, request: Any) -> None:
    try:
        await rpc.write(rpc.method.serialize(request))
    except asyncio.CancelledError:
        rpc.cancel()
        raise


async def _half_close(rpc: RequestStream) -> None:
    try:
        await rpc.half_close()
    except asyncio.CancelledError:
        rpc.cancel()
        raise


async def _consume(rpc: RequestStream, requests: Requests[Any]) -> None:
    """Write what the iterator gives. If it fails, nobody but the server would wait for the rest: cancel (as gRPC)."""
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                await _write(rpc, request)
        else:
            for request in requests:
                await _write(rpc, request)
        await _half_close(rpc)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the call ended; its status says why
    except asyncio.CancelledError:
        if not rpc.over:
            rpc.cancel()
    except Exception as error:
        probe("rpc: a request iterator failed")
        rpc.cancel(f"the request iterator failed: {error!r}")


class UnaryStreamCall(_Reads[Response], grpc.aio.UnaryStreamCall[Request, Response], Generic[Request, Response]):
    """One message, and an answer of many."""

    def __init__(self, rpc: StreamResponse) -> None:
        self._rpc = rpc
        rpc.start()


class StreamUnaryCall(_Writes[Request], grpc.aio.StreamUnaryCall[Request, Response], Generic[Request, Response]):
    """Many messages, and one answer."""

    _rpc: StreamUnaryRpc

    def __init__(self, rpc: StreamUnaryRpc, requests: Requests[Request] | None) -> None:
        self._rpc = rpc
        self._begin(requests)

    def __del__(self) -> None:
        # With an iterator it needs nobody to end it.
        if self._rpc.pump is None:
            super().__del__()

    def __await__(self) -> Generator[Any, None, Response]:
        rpc = self._rpc
        if rpc.status is None:
            try:
                yield from rpc.wait()
            except asyncio.CancelledError:
                rpc.cancel()
                raise
        return rpc.result()  # type: ignore[no-any-return]


class StreamStreamCall(
    _Writes[Request], _Reads[Response], grpc.aio.StreamStreamCall[Request, Response], Generic[Request, Response]
):
    """Many messages both ways."""

    _rpc: StreamStreamRpc

    def __init__(self, rpc: StreamStreamRpc, requests: Requests[Request] | None) -> None:
        self._rpc = rpc
        self._begin(requests)

    @property
    def direct(self) -> StreamStreamRpc:
        """What carries messages as bytes, and without a task, for who has many small ones (``rpc.peer.Direct``); not in
        grpc.aio. This call must be held as long."""
        return self._rpc

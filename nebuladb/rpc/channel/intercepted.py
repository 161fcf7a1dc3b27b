"""Calls that go through client interceptors: grpc.aio's intercepted calls.

The interceptors run in a task, whose result is a call: the one that the innermost continuation began, another one, or
a stand-in around an interceptor's own answer. What is asked of the intercepted call is asked of that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from nebuladb.rpc.channel.calls import MIXED, Requests
from nebuladb.rpc.channel.dispatcher import Dispatcher
from nebuladb.rpc.channel.method import Method
from nebuladb.rpc.channel.rpc import LOCALLY_CANCELLED
from nebuladb.rpc.channel.streams import FINISHED, HALF_CLOSED

Details = grpc.aio.ClientCallDetails
Plain = Callable[[Details, Any], Any]
"""Begins the call itself, after the last interceptor."""

_END: Final = object()


def details(
    method: Method,
    timeout: float | None,
    metadata: Any,
    credentials: grpc.CallCredentials | None,
    wait_for_ready: bool | None,
) -> Details:
    """What interceptors are told. As in grpc.aio the method is bytes and the metadata never None."""
    if not isinstance(metadata, grpc.aio.Metadata):
        metadata = grpc.aio.Metadata(*(metadata or ()))
    return Details(method.path.encode(), timeout, metadata, credentials, wait_for_ready)  # type: ignore[arg-type]


def method_of(method: Method, details: Details) -> Method:
    """The method to call: an interceptor may have put in another one."""
    path: Any = details.method
    path = path.decode() if isinstance(path, bytes) else path
    return method if path == method.path else method.renamed(path)


class _Chain:
    """Interceptors around the start of a call; `run` is what the task does."""

    def __init__(self, hook: str, kind: type[Any], interceptors: Sequence[Any], plain: Plain) -> None:
        self._hook = hook
        self._kind = kind
        self._interceptors = interceptors
        self._plain = plain
        self._last: Any = None
        """The call that was begun last, for an interceptor that answers with an iterator over it."""

    async def run(self, details: Details, request: Any, depth: int = 0) -> Any:
        if depth == len(self._interceptors):
            self._last = self._plain(details, request)
            return self._last

        async def proceed(details: Details, request: Any) -> Any:
            return await self.run(details, request, depth + 1)

        result = await getattr(self._interceptors[depth], self._hook)(proceed, details, request)
        if isinstance(result, self._kind):
            return result
        return _Answered(result) if hasattr(self._kind, "__await__") else _Responses(result, self._last)


class _Intercepted:
    """What the four have in common."""

    def __init__(self, core: Dispatcher, chain: _Chain, details: Details, request: Any) -> None:
        self._loop = core.loop
        self._task: asyncio.Task[Any] = core.loop.create_task(chain.run(details, request))

    def _settled(self) -> Any:
        """The call, if the interceptors have given one."""
        task = self._task
        return task.result() if task.done() and not task.cancelled() and task.exception() is None else None

    async def _ask(self, question: str, of_error: Callable[[grpc.aio.AioRpcError], Any], cancelled: Any) -> Any:
        # Not a shielded await: the cancellation of whoever asks would look as that of the interceptors.
        await asyncio.wait((self._task,))
        if self._task.cancelled():
            return cancelled
        try:
            call = self._task.result()
        except grpc.aio.AioRpcError as error:
            return of_error(error)
        return await getattr(call, question)()

    async def initial_metadata(self) -> Any:
        return await self._ask("initial_metadata", lambda error: error.initial_metadata(), None)

    async def trailing_metadata(self) -> Any:
        return await self._ask("trailing_metadata", lambda error: error.trailing_metadata(), None)

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._ask("code", lambda error: error.code(), grpc.StatusCode.CANCELLED)
        return code

    async def details(self) -> str:
        details: str = await self._ask("details", lambda error: error.details(), LOCALLY_CANCELLED)
        return details

    async def debug_error_string(self) -> str | None:
        text: str | None = await self._ask("debug_error_string", lambda error: error.debug_error_string(), "")
        return text

    async def wait_for_connection(self) -> None:
        await (await asyncio.shield(self._task)).wait_for_connection()

    def cancel(self) -> bool:
        if not self._task.done():
            return self._task.cancel()
        call = self._settled()
        return call is not None and bool(call.cancel())

    def cancelled(self) -> bool:
        task = self._task
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is not None:
                return isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED
            return bool(task.result().cancelled())
        return task.cancelled()

    def done(self) -> bool:
        call = self._settled()
        return self._task.done() if call is None else bool(call.done())

    def time_remaining(self) -> float | None:
        call = self._settled()
        remaining: float | None = None if call is None else call.time_remaining()
        return remaining

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if not self._task.done():
            self._task.add_done_callback(lambda _: self.add_done_callback(callback))
            return
        call = self._settled()
        if call is None:
            callback(self)
        else:
            call.add_done_callback(lambda _: callback(self))


class _Awaited(_Intercepted):
    """Whose answer is one message."""

    def __await__(self) -> Generator[Any, None, Any]:
        call = yield from self._task.__await__()
        return (yield from call.__await__())


class _Read(_Intercepted):
    """Whose answer is a stream."""

    _iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._iterator is None:
            self._iterator = self._responses()
        return self._iterator

    async def _responses(self) -> AsyncIterator[Any]:
        async for response in await self._task:
            yield response

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        try:
            return await self.__aiter__().__anext__()
        except StopAsyncIteration:
            return grpc.aio.EOF


class _Feed:
    """What the application writes, as the iterator that interceptors are given. One message waits in it at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._item: Any = None
        self._full = False
        self._closed = False
        self.over = False
        """The call has ended: nobody reads any more."""
        self._changed: list[asyncio.Future[None]] = []

    def _change(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    async def _wait(self) -> None:
        future = self._loop.create_future()
        self._changed.append(future)
        await future

    def end(self) -> None:
        """The call is over."""
        self.over = True
        self._change()

    async def put(self, item: Any) -> None:
        """Raises `InvalidStateError` when it is too late."""
        while self._full and not self.over:
            await self._wait()
        if self.over:
            raise asyncio.InvalidStateError(FINISHED)
        if self._closed:
            raise asyncio.InvalidStateError(HALF_CLOSED)
        self._closed = item is _END
        self._item, self._full = item, True
        self._change()

    async def done(self) -> None:
        """No more messages."""
        if not self._closed and not self.over:
            await self.put(_END)

    def __aiter__(self) -> _Feed:
        return self

    async def __anext__(self) -> Any:
        while not self._full:
            if self.over:
                raise StopAsyncIteration
            await self._wait()
        if self._item is _END:
            raise StopAsyncIteration
        item, self._item, self._full = self._item, None, False
        self._change()
        return item


class _Written(_Intercepted):
    """Whose request is a stream."""

    def __init__(self, core: Dispatcher, chain: _Chain, details: Details, requests: Requests[Any] | None) -> None:
        self._feed = _Feed(core.loop) if requests is None else None
        super().__init__(core, chain, details, self._feed if requests is None else requests)
        feed = self._feed
        if feed is not None:
            self.add_done_callback(lambda _: feed.end())

    def _writes(self) -> _Feed:
        if self._feed is None:
            raise grpc.aio.UsageError(MIXED)
        return self._feed

    async def write(self, request: Any) -> None:
        """Give the interceptors' iterator a message; returns when the next one may come."""
        await self._writes().put(request)

    async def done_writing(self) -> None:
        """Say that the request is complete."""
        await self._writes().done()


class UnaryUnaryCall(_Awaited, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One message each way."""

    def __init__(
        self, core: Dispatcher, interceptors: Sequence[Any], details: Details, request: Any, plain: Plain
    ) -> None:
        chain = _Chain("intercept_unary_unary", grpc.aio.UnaryUnaryCall, interceptors, plain)
        super().__init__(core, chain, details, request)


class UnaryStreamCall(_Read, grpc.aio.UnaryStreamCall[Any, Any]):
    """One message, and an answer of many."""

    def __init__(
        self, core: Dispatcher, interceptors: Sequence[Any], details: Details, request: Any, plain: Plain
    ) -> None:
        chain = _Chain("intercept_unary_stream", grpc.aio.UnaryStreamCall, interceptors, plain)
        super().__init__(core, chain, details, request)


class StreamUnaryCall(_Written, _Awaited, grpc.aio.StreamUnaryCall[Any, Any]):
    """Many messages, and one answer."""

    def __init__(
        self, core: Dispatcher, interceptors: Sequence[Any], details: Details, requests: Any, plain: Plain
    ) -> None:
        chain = _Chain("intercept_stream_unary", grpc.aio.StreamUnaryCall, interceptors, plain)
        super().__init__(core, chain, details, requests)


class StreamStreamCall(_Written, _Read, grpc.aio.StreamStreamCall[Any, Any]):
    """Many messages both ways."""

    def __init__(
        self, core: Dispatcher, interceptors: Sequence[Any], details: Details, requests: Any, plain: Plain
    ) -> None:
        chain = _Chain("intercept_stream_stream", grpc.aio.StreamStreamCall, interceptors, plain)
        super().__init__(core, chain, details, requests)


class _StandIn:
    """A call that is over, with success."""

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    async def debug_error_string(self) -> str:
        return ""

    async def wait_for_connection(self) -> None:
        return


class _Answered(_StandIn, grpc.aio.UnaryUnaryCall[Any, Any]):
    """An interceptor's own answer."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return self._response


class _Responses(_StandIn):
    """An interceptor's own answers: its iterator, in front of the call that it began, if it did."""

    def __init__(self, responses: Any, call: Any) -> None:
        self._responses = responses
        self._call = call

    def __aiter__(self) -> AsyncIterator[Any]:
        iterator: AsyncIterator[Any] = self._responses.__aiter__()
        return iterator

    def __getattribute__(self, name: str) -> Any:
        call = object.__getattribute__(self, "_call")
        if call is not None and name in _ASKED:
            return getattr(call, name)
        return object.__getattribute__(self, name)


_ASKED: Final = frozenset(name for name in vars(_StandIn) if not name.startswith("_"))

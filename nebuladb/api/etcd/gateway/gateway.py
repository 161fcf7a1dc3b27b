"""From a request of HTTP to a handler and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from nebuladb.api.etcd.gateway.answer import FROM_GRPC, JSON, Answer, http_status, refusal, stream_error, text
from nebuladb.api.etcd.gateway.connection import Connection, Request
from nebuladb.api.etcd.gateway.context import Context
from nebuladb.api.etcd.gateway.mapping import all_from_json, from_json, to_json
from nebuladb.api.etcd.gateway.pages import PAGES, Pages
from nebuladb.api.etcd.gateway.routes import PATHS, normal
from nebuladb.errors import InvalidArgument
from nebuladb.kv.limits import MAX_REQUEST_BYTES

LOG: Final = logging.getLogger("nebuladb.gateway")
MAX_MESSAGE_BYTES: Final = MAX_REQUEST_BYTES + (512 << 10)
"""Of a request once it is a message: etcd's cap on what gRPC takes (etcd 26). Below it the handler refuses."""
MAX_CONNECTIONS: Final = 4096
MAX_HELD_BYTES: Final = 64 << 20
"""Of all bodies that come in or are being answered."""
_NOT_FOUND: Final = refusal(grpc.StatusCode.NOT_FOUND, "Not Found")
_NOT_ALLOWED: Final = refusal(grpc.StatusCode.UNIMPLEMENTED, "Method Not Allowed", 405)
_LATE: Final = "context deadline exceeded"
_FAILED: Final = "the handler failed; the server's log says why"


class _Method(NamedTuple):
    """What a path calls."""

    handler: Any
    request: type[Message]
    response: type[Message]


class Gateway:
    """Of one client port. Call it to make the protocol of a connection."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._methods: dict[tuple[str, str], _Method] = {}
        self._connections: dict[Connection, None] = {}
        self._held = 0
        self.stopping = False

    def serve(self, handlers: grpc.GenericRpcHandler, service: ServiceDescriptor) -> None:
        """`handlers`' methods are what `service`'s paths call."""
        for method in service.methods:
            details: Any = _Details(f"/{service.full_name}/{method.name}", ())
            found = handlers.service(details)
            if found is not None:
                self._methods[service.full_name, method.name] = _method(found, method)

    def __call__(self) -> Connection:
        return Connection(self)

    # --- connections

    def connected(self, connection: Connection) -> bool:
        """Whether one more may be."""
        if self.stopping or len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections[connection] = None
        return True

    def disconnected(self, connection: Connection) -> None:
        """It is gone."""
        self._connections.pop(connection, None)

    def hold(self, size: int) -> bool:
        """So many bytes more, or less, of a body are held; whether there is room for them."""
        self._held += size
        return self._held <= MAX_HELD_BYTES

    async def stop(self, grace: float) -> None:
        """Take no more requests; give those in progress `grace` seconds."""
        self.stopping = True
        tasks = [task for connection in list(self._connections) if (task := connection.finish()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- requests

    async def answer(self, request: Request, connection: Connection) -> None:
        """Answer a request. A handler that is cancelled is one whose client is gone."""
        if request.method == "OPTIONS":
            await connection.send(Answer(200, ()))
            return
        path = normal(request.path)
        if path in PAGES:
            allowed = request.method == "GET"
            found = await self._pages.answer(path, parse_qs(request.query, keep_blank_values=True)) if allowed else None
            await connection.send(found or text(405, "Method Not Allowed", (b"allow", b"GET")))
            return
        if not path.startswith("/v3/"):
            await connection.send(text(404, "404 page not found"))
            return
        place = PATHS.get(path)
        if place is None or request.method != "POST":
            await connection.send(_NOT_FOUND if place is None else _NOT_ALLOWED)
            return
        method = self._methods.get(place)
        if method is None:
            why = f"unknown method {place[1]} for service {place[0]}"
            await connection.send(refusal(grpc.StatusCode.UNIMPLEMENTED, why))
            return
        try:
            body = request.body.decode()
            context = Context(request.headers, connection.peer)
            if method.handler.response_streaming:
                await self._stream(method, body, context, connection)
            else:
                await connection.send(await self._unary(method, body, context))
        except UnicodeDecodeError:
            await connection.send(refusal(grpc.StatusCode.INVALID_ARGUMENT, "proto: invalid UTF-8"))
        except InvalidArgument as error:
            await connection.send(refusal(grpc.StatusCode.INVALID_ARGUMENT, error.message))

    async def _unary(self, method: _Method, body: str, context: Context) -> Answer:
        raw = _bounded(from_json(method.request, body).SerializeToString())
        if isinstance(raw, Answer):
            return raw
        answered: list[bytes] = []

        async def call() -> None:
            answered.append(await method.handler.unary_unary(raw, context))

        status = await _run(call, context)
        if status is not None:
            return refusal(*status)
        return Answer(200, (JSON, FROM_GRPC), to_json(method.response.FromString(answered[0])))

    async def _stream(self, method: _Method, body: str, context: Context, connection: Connection) -> None:
        head = (JSON, FROM_GRPC)
        if method.handler.request_streaming:
            responses = method.handler.stream_stream(_Requests(all_from_json(method.request, body)), context)
        else:
            raw = _bounded(from_json(method.request, body).SerializeToString())
            if isinstance(raw, Answer):
                await connection.send(raw)
                return
            responses = method.handler.unary_stream(raw, context)

        async def call() -> None:
            async with aclosing(responses):
                async for response in responses:
                    result = to_json(method.response.FromString(response))
                    await connection.chunk(200, head, b'{"result":%b}\n' % result)

        status = await _run(call, context)
        if status is not None:
            await connection.chunk(http_status(status[0]), (JSON,), stream_error(*status))
        await connection.end(200, head)


class _Details(NamedTuple):
    """What generic handlers are asked with."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class _Requests:
    """The messages of a body, as a handler of streams reads them. The first is parsed at once, so that a body that is
    no JSON is refused; what is wrong behind it ends the requests, as in etcd."""

    def __init__(self, messages: Iterator[Message]) -> None:
        self._messages = messages
        self._first = next(messages, None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        message, self._first = self._first, None
        try:
            message = message if message is not None else next(self._messages, None)
        except InvalidArgument:
            message = None
        if message is None:
            raise StopAsyncIteration
        return message.SerializeToString()


async def _run(call: Callable[[], Awaitable[None]], context: Context) -> tuple[grpc.StatusCode, str] | None:
    """Run a handler to its end, or to its deadline; None if it went well."""
    cancelled = False
    late = grpc.StatusCode.DEADLINE_EXCEEDED, _LATE
    try:
        if context.time_remaining() == 0:
            return late
        async with asyncio.timeout(context.time_remaining()):
            await call()
        return context.status
    except TimeoutError:
        return late
    except grpc.aio.AbortError:
        # The handler may have noticed a moment before we did.
        return late if context.time_remaining() == 0 else context.status or (grpc.StatusCode.UNKNOWN, _FAILED)
    except (asyncio.CancelledError, ConnectionError):
        cancelled = True
        raise
    except Exception:
        LOG.exception("a handler failed")
        return grpc.StatusCode.UNKNOWN, _FAILED
    finally:
        context.finish(cancelled=cancelled)


def _bounded(raw: bytes) -> bytes | Answer:
    if len(raw) <= MAX_MESSAGE_BYTES:
        return raw
    why = f"grpc: received message larger than max ({len(raw)} vs. {MAX_MESSAGE_BYTES})"
    return refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, why)


def _method(handler: Any, method: MethodDescriptor) -> _Method:
    kinds = (method.input_type, method.output_type)
    return _Method(handler, *(message_factory.GetMessageClass(kind) for kind in kinds))

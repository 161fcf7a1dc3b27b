"""From a request of HTTP to a handler and back."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from nebuladb.api.etcd.gateway.answer import FROM_GRPC, JSON, Answer, http_status, moved, refusal, stream_error, text
from nebuladb.api.etcd.gateway.connection import Connection, Request
from nebuladb.api.etcd.gateway.context import Context
from nebuladb.api.etcd.gateway.mapping import Reader, to_json
from nebuladb.api.etcd.gateway.pages import PAGES, Pages
from nebuladb.api.etcd.gateway.routes import PATHS, clean, normal
from nebuladb.api.etcd.gateway.worker import Worker
from nebuladb.api.etcd.requests import MAX_RECEIVED_BYTES
from nebuladb.errors import InvalidArgument
from nebuladb.rpc.serving.turns import Turns

LOG: Final = logging.getLogger("nebuladb.gateway")
MAX_CONNECTIONS: Final = 4096
MAX_TURNED_AWAY: Final = 64
"""Connections beyond them that are being told so; more are cut without a word."""
MAX_HELD_BYTES: Final = 64 << 20
"""Of all bodies that come in or are being answered."""
WARN_SECONDS: Final = 60.0
"""Between two warnings that there are too many connections."""
_NOT_FOUND: Final = refusal(grpc.StatusCode.NOT_FOUND, "Not Found")
_NOT_ALLOWED: Final = refusal(grpc.StatusCode.UNIMPLEMENTED, "Method Not Allowed", 405)
_LATE: Final = "context deadline exceeded"
_FAILED: Final = "the handler failed; the server's log says why"

_Reader = Reader[Message]


class _Method(NamedTuple):
    """What a path calls."""

    handler: Any
    request: type[Message]
    response: type[Message]


class Gateway:
    """The methods and pages that one client port has over HTTP/1.1, and its connections. Call it to make the protocol
    of one."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._methods: dict[tuple[str, str], _Method] = {}
        self._connections: dict[Connection, None] = {}
        self._turned_away: dict[Connection, None] = {}
        self._warned = -WARN_SECONDS
        self._worker = Worker()
        self.turns = Turns()
        self._held = 0
        self._quiet = asyncio.Event()
        """Set when the last connection is gone, of a gateway that stops."""
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

    def turned_away(self, connection: Connection) -> bool:
        """One more may not be; whether it may be told so."""
        now = asyncio.get_running_loop().time()
        if not self.stopping and now - self._warned >= WARN_SECONDS:
            self._warned = now
            LOG.warning(
                "there are %d connections of HTTP/1.1, as many as may be: one of %s and others are refused",
                len(self._connections),
                connection.peer or "a client",
            )
        if self.stopping or len(self._turned_away) >= MAX_TURNED_AWAY:
            return False
        self._turned_away[connection] = None
        return True

    def disconnected(self, connection: Connection) -> None:
        """It is gone."""
        self._connections.pop(connection, None)
        self._turned_away.pop(connection, None)
        if self.stopping and not self._connections:
            self._quiet.set()

    def hold(self, size: int) -> bool:
        """So many bytes more, or less, of a body are held; whether there is room for them."""
        self._held += size
        return self._held <= MAX_HELD_BYTES

    async def stop(self, grace: float) -> None:
        """Take no more requests; give those in progress, and clients that haven't taken all of their answers yet,
        `grace` seconds."""
        self.stopping = True
        tasks = [task for connection in list(self._connections) if (task := connection.finish()) is not None]
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._quiet.wait()
        for connection in [*self._connections, *self._turned_away]:
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._worker.stop()

    # --- requests

    async def answer(self, request: Request, connection: Connection) -> None:
        """Answer a request. A handler that is cancelled is one whose client is gone."""
        if request.method == "OPTIONS":
            await connection.send(Answer(200, ()))
            return
        path = clean(request.path)
        if path != request.path:
            await connection.send(moved(path, request.query))
            return
        path = normal(path)
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
        await self._call(method, request, connection)

    async def _call(self, method: _Method, request: Request, connection: Connection) -> None:
        context: Context | None = None
        cancelled = False
        try:
            reader = Reader(method.request, connection.take().decode())
            context = Context(request.headers, connection.peer)
            context.drop = connection.abort
            if method.handler.response_streaming:
                await self._stream(method, reader, context, connection)
            else:
                await connection.send(await self._unary(method, reader, context, connection))
        except UnicodeDecodeError:
            await connection.send(refusal(grpc.StatusCode.INVALID_ARGUMENT, "proto: invalid UTF-8"))
        except InvalidArgument as error:
            await connection.send(refusal(grpc.StatusCode.INVALID_ARGUMENT, error.message))
        except (asyncio.CancelledError, ConnectionError):
            cancelled = True
            raise
        finally:
            if context is not None:  # not before the client has taken the answer: what it holds counts until then
                context.finish(cancelled=cancelled)

    async def _unary(self, method: _Method, reader: _Reader, context: Context, connection: Connection) -> Answer:
        raw = _bounded(await self._worker.run(reader.left, reader.only))
        if isinstance(raw, Answer):
            return raw
        connection.keep(len(raw))
        answered: list[bytes] = []

        async def call() -> None:
            answered.append(await method.handler.unary_unary(raw, context))

        status = await _run(call, context)
        if status is not None:
            return refusal(*status)
        body = await self._worker.run(len(answered[0]), _json, method.response, answered.pop())
        return Answer(200, (JSON, FROM_GRPC), body)

    async def _stream(self, method: _Method, reader: _Reader, context: Context, connection: Connection) -> None:
        head = (JSON, FROM_GRPC)
        connection.streams()
        if method.handler.request_streaming:
            requests = _Requests(reader, self._worker, connection)
            await requests.begin()
            responses = method.handler.stream_stream(requests, context)
        else:
            raw = _bounded(await self._worker.run(reader.left, reader.only))
            if isinstance(raw, Answer):
                await connection.send(raw)
                return
            connection.keep(len(raw))
            responses = method.handler.unary_stream(raw, context)

        async def call() -> None:
            async with aclosing(responses):
                async for response in responses:
                    result = await self._worker.run(len(response), _json, method.response, response)
                    del response  # the next one may be long in coming
                    await connection.chunk(200, head, b'{"result":%b}\n' % result)
                    del result

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
    no JSON is refused; what is wrong behind it ends the requests, as in etcd. The handler has them in batches: between
    two of them others have a turn, since all of the messages are there, and no handler would ever wait for one."""

    def __init__(self, reader: _Reader, worker: Worker, connection: Connection) -> None:
        self._reader = reader
        self._worker = worker
        self._connection = connection
        self._ready: deque[bytes] = deque()

    async def begin(self) -> None:
        """Read the first messages. Raises `InvalidArgument` if the first is none."""
        self._ready.extend(await self._worker.run(self._reader.left, self._reader.batch))
        self._connection.keep(self._reader.left + sum(map(len, self._ready)))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._ready:
            await asyncio.sleep(0)
            try:
                await self.begin()
            except InvalidArgument:
                self._connection.keep(0)
        if not self._ready:
            raise StopAsyncIteration
        message = self._ready.popleft()
        if not self._ready:
            self._connection.keep(self._reader.left)
        return message


def _json(kind: type[Message], raw: bytes) -> bytes:
    return to_json(kind.FromString(raw))


async def _run(call: Callable[[], Awaitable[None]], context: Context) -> tuple[grpc.StatusCode, str] | None:
    """Run a handler to its end, or to its deadline; None if it went well."""
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
    except ConnectionError:
        raise
    except Exception:
        LOG.exception("a handler failed")
        return grpc.StatusCode.UNKNOWN, _FAILED


def _bounded(raw: bytes) -> bytes | Answer:
    """A request as a message; or, if gRPC would not take one so large (etcd 26), its refusal."""
    if len(raw) <= MAX_RECEIVED_BYTES:
        return raw
    why = f"grpc: received message larger than max ({len(raw)} vs. {MAX_RECEIVED_BYTES})"
    return refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, why)


def _method(handler: Any, method: MethodDescriptor) -> _Method:
    kinds = (method.input_type, method.output_type)
    return _Method(handler, *(message_factory.GetMessageClass(kind) for kind in kinds))

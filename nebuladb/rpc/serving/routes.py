"""From a method's path to what runs it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import grpc
import grpc.aio

from nebuladb.rpc.metadata import Value

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

MAX_SHOWN: Final = 200
"""Characters of a path that an error repeats."""
MAX_CACHED: Final = 4096
"""Routes that are kept by path. Only methods that there are have one, so that no peer can fill it with others."""
_DICTIONARY: Final = type(grpc.method_handlers_generic_handler("", {}))
"""What generated code registers. It answers by path alone, so its answer can be kept; others may look at metadata."""
_COROUTINE: Final = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
_ASYNC_GENERATOR: Final = inspect.CO_ASYNC_GENERATOR


class CallDetails(NamedTuple):
    """What handlers and interceptors are asked with (``grpc.HandlerCallDetails``)."""

    method: str
    invocation_metadata: tuple[tuple[str, Value], ...]


def _flags(function: Any) -> int:
    """The code flags of a function, a method, a partial of one, or an object that is called like one."""
    while True:
        inner = getattr(function, "func", None) or getattr(function, "__func__", None)
        if inner is None:
            break
        function = inner
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(inspect.getattr_static(type(function), "__call__", None), "__code__", None)
    return 0 if code is None else int(code.co_flags)


class Route:
    """A method's handler, looked at once."""

    __slots__ = (
        "behaviour",
        "deserialize",
        "direct",
        "generator",
        "handler",
        "native",
        "request_streaming",
        "response_streaming",
        "serialize",
    )

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.request_streaming = bool(handler.request_streaming)
        self.response_streaming = bool(handler.response_streaming)
        self.deserialize: Callable[[bytes], Any] | None = handler.request_deserializer
        self.serialize: Callable[[Any], bytes] | None = handler.response_serializer
        kind = f"{_ARITY[self.request_streaming]}_{_ARITY[self.response_streaming]}"
        behaviour = getattr(handler, kind)
        if behaviour is None:
            raise ValueError(f"a handler that says it is {kind} has no {kind}")
        self.behaviour: Callable[..., Any] = behaviour
        flags = _flags(behaviour)
        self.generator = bool(flags & _ASYNC_GENERATOR)
        """The behaviour is an async generator; otherwise a streaming one writes to its context."""
        self.native = self.generator or bool(flags & _COROUTINE)
        """It runs in the loop. One that isn't runs in a thread, since it may block."""
        self.direct = self.native and not (self.request_streaming or self.response_streaming or self.generator)
        """Unary both ways, and a coroutine: `Carriers` runs the behaviour itself."""


_ARITY: Final = {False: "unary", True: "stream"}

_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


class Routes:
    """All methods of a server, behind its interceptors."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        wrong = [one for one in interceptors if not isinstance(one, grpc.aio.ServerInterceptor)]
        if wrong:
            raise ValueError(f"interceptors must be grpc.aio.ServerInterceptors, these are not: {wrong}")
        self._generic: list[grpc.GenericRpcHandler] = []
        self._registered: dict[str, Handler] = {}
        self._services: set[str] = set()
        """Names of those that say theirs."""
        self._cache: dict[str, Route] = {}
        self.dynamic = bool(interceptors)
        """Interceptors, or handlers of no known type: each call must be asked for anew, by `resolve`."""
        self._entry: _Continuation = self._continuation(self._last, interceptors)

    def add_generic(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        for handler in handlers:
            if not isinstance(handler, grpc.GenericRpcHandler):
                raise TypeError(f"{handler!r} is no grpc.GenericRpcHandler")
            self._generic.append(handler)
            if isinstance(handler, grpc.ServiceRpcHandler):
                self._services.add(handler.service_name())
            self.dynamic = self.dynamic or type(handler) is not _DICTIONARY

    def add_registered(self, service: str, handlers: Mapping[str, Handler]) -> None:
        self._services.add(service)
        for method, handler in handlers.items():
            self._registered[f"/{service}/{method}"] = handler

    def find(self, path: str) -> Route | None:
        """The route of a method where nothing is dynamic."""
        route = self._cache.get(path)
        if route is None:
            handler = self._handler(CallDetails(path, ()))
            if handler is None:
                return None
            route = Route(handler)
            if len(self._cache) < MAX_CACHED:
                self._cache[path] = route
        return route

    async def resolve(self, details: CallDetails) -> Route | None:
        """Through interceptors and handlers."""
        handler = await self._entry(cast(grpc.HandlerCallDetails, details))
        return None if handler is None else Route(handler)

    def unknown(self, path: str) -> str:
        """What is said of a method that isn't here, in the words of gRPC for Go."""
        shown = path[:MAX_SHOWN]
        service, slash, method = shown.removeprefix("/").rpartition("/")
        if not slash:
            return f'malformed method name: "{shown}"'
        if service in self._services:
            return f"unknown method {method} for service {service}"
        return f"unknown service {service}"

    def _handler(self, details: CallDetails) -> Handler | None:
        found = self._registered.get(details.method)
        if found is not None:
            return found
        for generic in self._generic:
            found = generic.service(cast(grpc.HandlerCallDetails, details))
            if found is not None:
                return found
        return None

    async def _last(self, details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handler(cast(CallDetails, details))

    def _continuation(self, last: _Continuation, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> _Continuation:
        """The first interceptor's turn, given all of them; each is handed what calls the next."""
        entry = last
        for interceptor in reversed(interceptors):
            entry = _bound(interceptor, entry)
        return entry


def _bound(interceptor: grpc.aio.ServerInterceptor, following: _Continuation) -> _Continuation:
    async def turn(details: grpc.HandlerCallDetails) -> Handler | None:
        return await interceptor.intercept_service(following, details)

    return turn

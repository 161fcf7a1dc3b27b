"""Methods as the application calls them: grpc.aio's multicallables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from nebuladb.rpc.channel import intercepted
from nebuladb.rpc.channel.calls import Requests, StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from nebuladb.rpc.channel.dispatcher import Dispatcher
from nebuladb.rpc.channel.method import Method
from nebuladb.rpc.channel.rpc import Rpc
from nebuladb.rpc.channel.streams import StreamResponse, StreamStreamRpc, StreamUnaryRpc
from nebuladb.rpc.compression import BY_ENUM, IDENTITY
from nebuladb.rpc.metadata import Value, encode_metadata

Request = TypeVar("Request")
Response = TypeVar("Response")
Interceptor = TypeVar("Interceptor")
Metadata = grpc.aio.Metadata | Sequence[tuple[str, Value]]
Compression = grpc.Compression | str

CLOSED = "Channel is closed."


def encoding_of(compression: Compression | None) -> str:
    """The grpc-encoding of a choice: grpc's enumeration, or the encoding's own name. Empty for none."""
    if compression is None:
        return ""
    name = BY_ENUM[compression] if isinstance(compression, grpc.Compression) else compression
    return "" if name == IDENTITY else name


class Multicallable(Generic[Interceptor]):
    """What the four have in common."""

    def __init__(self, core: Dispatcher, method: Method, interceptors: list[Interceptor], encoding: str) -> None:
        self._core = core
        self._method = method
        self._interceptors = interceptors
        self._encoding = encoding

    def _prepare(
        self,
        rpc: Rpc,
        metadata: Iterable[tuple[str, Value]] | None,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: Compression | None,
    ) -> None:
        """What few calls have. Raises `MetadataError` and `UsageError`."""
        if credentials is not None:
            raise grpc.aio.UsageError("no call credentials here: send them as metadata, e.g. ('authorization', ...)")
        if metadata:
            rpc.metadata = encode_metadata(metadata)
        if wait_for_ready:
            rpc.wait_for_ready = True
        encoding = self._encoding if compression is None else encoding_of(compression)
        if encoding:
            rpc.encoding = encoding

    def _open(self) -> Dispatcher:
        if self._core.closing:
            raise grpc.aio.UsageError(CLOSED)
        return self._core


class UnaryUnary(
    Multicallable[grpc.aio.UnaryUnaryClientInterceptor],
    grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    Generic[Request, Response],
):
    """A method with one message each way."""

    def __call__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: Compression | None = None,
    ) -> grpc.aio.UnaryUnaryCall[Request, Response]:
        """Begin a call. Raises what serializing the request raises, `MetadataError`, `UsageError`."""
        core = self._core
        if core.closing:
            raise grpc.aio.UsageError(CLOSED)
        if self._interceptors:
            details = intercepted.details(self._method, timeout, metadata, credentials, wait_for_ready)
            return intercepted.UnaryUnaryCall(core, self._interceptors, details, request, self._plain(compression))
        method = self._method
        call: UnaryUnaryCall[Request, Response] = UnaryUnaryCall(core, method, timeout)
        call.request = method.serialize(request)
        if metadata or credentials or wait_for_ready or compression is not None or self._encoding:
            self._prepare(call, metadata, credentials, wait_for_ready, compression)
        call.start()
        return call

    def _plain(self, compression: Compression | None) -> intercepted.Plain:
        def begin(details: grpc.aio.ClientCallDetails, request: Any) -> UnaryUnaryCall[Any, Any]:
            method = intercepted.method_of(self._method, details)
            call: UnaryUnaryCall[Any, Any] = UnaryUnaryCall(self._open(), method, details.timeout)
            call.request = method.serialize(request)
            self._prepare(call, details.metadata, details.credentials, details.wait_for_ready, compression)
            call.start()
            return call

        return begin


class UnaryStream(
    Multicallable[grpc.aio.UnaryStreamClientInterceptor],
    grpc.aio.UnaryStreamMultiCallable[Request, Response],
    Generic[Request, Response],
):
    """A method with one message, and an answer of many."""

    def __call__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: Compression | None = None,
    ) -> grpc.aio.UnaryStreamCall[Request, Response]:
        """Begin a call. Raises as `UnaryUnary`."""
        core = self._open()
        details = intercepted.details(self._method, timeout, metadata, credentials, wait_for_ready)

        def begin(details: grpc.aio.ClientCallDetails, request: Any) -> UnaryStreamCall[Any, Any]:
            method = intercepted.method_of(self._method, details)
            rpc = StreamResponse(self._open(), method, details.timeout)
            rpc.request = method.serialize(request)
            self._prepare(rpc, details.metadata, details.credentials, details.wait_for_ready, compression)
            return UnaryStreamCall(rpc)

        if self._interceptors:
            return intercepted.UnaryStreamCall(core, self._interceptors, details, request, begin)
        return begin(details, request)


class StreamUnary(
    Multicallable[grpc.aio.StreamUnaryClientInterceptor],
    grpc.aio.StreamUnaryMultiCallable[Request, Response],
    Generic[Request, Response],
):
    """A method with many messages, and one answer."""

    def __call__(
        self,
        request_iterator: Requests[Request] | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: Compression | None = None,
    ) -> grpc.aio.StreamUnaryCall[Request, Response]:
        """Begin a call whose messages come from `request_iterator`, or by `write`. Raises as `UnaryUnary`."""
        core = self._open()
        details = intercepted.details(self._method, timeout, metadata, credentials, wait_for_ready)

        def begin(details: grpc.aio.ClientCallDetails, requests: Any) -> StreamUnaryCall[Any, Any]:
            rpc = StreamUnaryRpc(self._open(), intercepted.method_of(self._method, details), details.timeout)
            self._prepare(rpc, details.metadata, details.credentials, details.wait_for_ready, compression)
            return StreamUnaryCall(rpc, requests)

        if self._interceptors:
            return intercepted.StreamUnaryCall(core, self._interceptors, details, request_iterator, begin)
        return begin(details, request_iterator)


class StreamStream(
    Multicallable[grpc.aio.StreamStreamClientInterceptor],
    grpc.aio.StreamStreamMultiCallable[Request, Response],
    Generic[Request, Response],
):
    """A method with many messages both ways."""

    def __call__(
        self,
        request_iterator: Requests[Request] | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: Compression | None = None,
    ) -> grpc.aio.StreamStreamCall[Request, Response]:
        """Begin a call whose messages come from `request_iterator`, or by `write`. Raises as `UnaryUnary`."""
        core = self._open()
        details = intercepted.details(self._method, timeout, metadata, credentials, wait_for_ready)

        def begin(details: grpc.aio.ClientCallDetails, requests: Any) -> StreamStreamCall[Any, Any]:
            rpc = StreamStreamRpc(self._open(), intercepted.method_of(self._method, details), details.timeout)
            self._prepare(rpc, details.metadata, details.credentials, details.wait_for_ready, compression)
            return StreamStreamCall(rpc, requests)

        if self._interceptors:
            return intercepted.StreamStreamCall(core, self._interceptors, details, request_iterator, begin)
        return begin(details, request_iterator)

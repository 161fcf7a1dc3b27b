"""One call, from its start to its status: what all kinds share, and the kinds whose answer is one message."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from nebuladb.rpc.channel.head import Head, head_of
from nebuladb.rpc.channel.method import Method
from nebuladb.rpc.compression import ZSTD, compressor
from nebuladb.rpc.framing import LARGER, PREFIX_BYTES, frame, frame_compressed, unframe
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.headers import HeaderBlock
from nebuladb.rpc.http2.stream import State, Stream
from nebuladb.rpc.metadata import Fields, format_timeout
from nebuladb.rpc.status import UNDONE, Status, StatusError, reset_status

if TYPE_CHECKING:
    from nebuladb.rpc.channel.connection import Connection
    from nebuladb.rpc.channel.dispatcher import Dispatcher

LOCALLY_CANCELLED: Final = "Locally cancelled by application!"
COLLECTED: Final = "Cancelled upon garbage collection!"
LATE: Final = "Deadline Exceeded"
NO_METADATA: Final[Fields] = ()
OK: Final = grpc.StatusCode.OK
SUCCESS: Final = Status(OK, "", grpc.aio.Metadata())
"""Of calls whose trailers said just that. Its metadata is copied before it is handed out, as all is."""


class Rpc:
    """The protocol's side of a call. It goes `Dispatcher.start` → (`queued`) → `begin` → events → `over` → `status`.

    Invariants: it is in at most one of a waiting queue (`queued`) and a connection's `calls`, and in neither once it is
    `over`; `status` is set once and never before `over`.
    """

    # What is the same for most calls stands in the class: an attribute not set costs nothing.
    status: Status | None = None
    over = False
    """Nothing more comes or goes on the wire."""
    head: Head | None = None
    connection: Connection | None = None
    stream: Stream | None = None
    queued: dict[Rpc, None] | None = None
    retried = False
    cancelled_here = False
    deadline: float | None = None
    metadata: Fields = NO_METADATA
    encoding = ""
    wait_for_ready = False
    request: bytes | None = None
    """The one message of the request, serialized; None where it is a stream."""
    _slot = 0
    _end_waiters: list[asyncio.Future[None]] | None = None
    _head_waiters: list[asyncio.Future[None]] | None = None
    _open_waiters: list[asyncio.Future[None]] | None = None
    listener: Callable[[bytes], None] | None = None
    """Given each message of a streamed answer as it comes, in place of whoever waits for one."""
    on_status: Callable[[], None] | None = None
    """Told when the status is set: the face's done callbacks."""

    def __init__(self, core: Dispatcher, method: Method, timeout: float | None) -> None:
        self.core = core
        self.method = method
        self.timeout = timeout if timeout is None or math.isfinite(timeout) else None

    def start(self) -> None:
        """Hand it to the channel. Everything that can be wrong with it becomes its status."""
        timeout = self.timeout
        if timeout is not None:
            self.deadline = deadline = monotonic() + timeout
            if timeout <= 0:
                self.expire()
                return
            self._slot = self.core.deadlines.add(self, timeout, deadline)
        request = self.request
        if request is not None and len(request) > self.core.settings.max_send_message:
            self.too_large(len(request))
        else:
            self.core.start(self)

    def too_large(self, size: int) -> None:
        """Fail it for a message of the application's."""
        most = self.core.settings.max_send_message
        self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, f"Sent message larger than max ({size} vs. {most})")

    # --- from the connection ---------------------------------------------------------------------------------------

    def begin(self, connection: Connection) -> None:
        """Open the stream. Raises `LocalProtocolError`; then the call is as it was."""
        encoding = self.encoding
        if encoding == ZSTD and ZSTD not in connection.accepts:
            encoding = ""  # no other implementation knows it
        timeout = None
        if self.deadline is not None:
            # The nominal value as long as it is nearly true: header blocks that repeat are cheap for both ends.
            left = self.deadline - monotonic()
            timeout = format_timeout(self.timeout if self.timeout and left > 0.99 * self.timeout else max(left, 0.0))
        headers = self.method.fields(timeout, encoding, self.metadata)
        if self.metadata and not connection.takes(headers):
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, f"metadata is larger than {connection.endpoint} takes")
            return
        if self.request is None:
            self.stream = connection.open(self, headers)
        elif encoding:
            codec = compressor(encoding)
            data = frame_compressed(self.request, codec) if codec else frame(self.request)
            self.stream = connection.unary(self, headers, data)
        else:
            self.stream = connection.unary(self, headers, frame(self.request))
        self.connection = connection
        if self._open_waiters is not None:
            self._wake_open()

    def repeatable(self) -> bool:
        """Whether it may be begun again, once, after a server did not look at it (gRPC's transparent retry)."""
        return not self.retried and self.whole()

    def whole(self) -> bool:
        """Whether all of the request, as far as there is one, is still at hand."""
        return self.request is not None

    def forget(self) -> None:
        """It will be begun again."""
        self.connection = self.stream = self.head = None

    def headers(self, block: HeaderBlock, data: bytes | None, ended: bool) -> None:
        """Headers or trailers came."""
        head = head_of(block)
        if ended and data is None:
            self.trailers(head)
            return
        connection = self.connection
        if connection is not None and head.accepts and head.accepts is not connection.accepts:
            connection.accepts = head.accepts
        self.head = head
        if self._head_waiters is not None:
            self._wake_head()
        if head.error is not None:
            self.fail(head.error.code, head.error.details)
        elif data is not None:
            self.data(data, ended)

    def data(self, data: bytes, ended: bool) -> None:
        """A part of the body came."""
        raise NotImplementedError

    def response(self, headers: HeaderBlock, data: bytes, trailers: HeaderBlock) -> None:
        """All of the answer came at once. The stream is over, and its data need not be given back."""
        self.stream = None
        self.headers(headers, data, ended=False)
        if not self.over:
            self.trailers(head_of(trailers))

    def trailers(self, head: Head) -> None:
        """The server ended the call."""
        if self._whole(head.successful or head.status.code is OK):
            self.end(SUCCESS if head.successful and not head.metadata else head.status)

    def _whole(self, successful: bool) -> bool:
        """Whether what came is an answer; else fail the call."""
        raise NotImplementedError

    def reset(self, code: ErrorCode, *, unprocessed: bool) -> None:
        """The stream was reset, or the server goes away without having looked at it."""
        if unprocessed:
            self.fail(grpc.StatusCode.UNAVAILABLE, "the server goes away and did not look at the call")
        else:
            self.fail(reset_status(code), f"the stream was reset: {code.name}")

    def writable(self) -> None:
        """What the application wrote has left."""

    # --- ends ------------------------------------------------------------------------------------------------------

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """End it here, with this status."""
        self.end(Status(code, details, grpc.aio.Metadata()))

    def refuse(self, details: str) -> None:
        """End it here for want of room. Only for a call that no handler can have seen: the status says so."""
        self.end(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, details, grpc.aio.Metadata(*UNDONE)))

    def _broken(self, error: StatusError) -> None:
        # The SDK and others know a size by grpc's words.
        details = error.details
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and LARGER not in details:
            details = f"Received message {LARGER}: {details}"
        self.fail(error.code, details)

    def expire(self) -> None:
        """Its deadline has passed."""
        self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, LATE)

    def cancel(self, details: str = LOCALLY_CANCELLED) -> bool:
        """End it as cancelled; False if it has ended already."""
        if self.status is not None:
            return False
        self.cancelled_here = True
        status = Status(grpc.StatusCode.CANCELLED, details, grpc.aio.Metadata())
        if self.over:
            self.settle(status)
        else:
            self.end(status)
        return True

    def end(self, status: Status) -> None:
        """Nothing more goes over the wire for this call."""
        if self.over:
            return
        self.over = True
        if self._slot:
            self.core.deadlines.drop(self, self._slot)
        if self.queued is not None:
            self.queued.pop(self, None)
            self.queued = None
        connection, stream = self.connection, self.stream
        if connection is not None:
            done = stream is None or stream.state is State.CLOSED
            connection.leave(self, stream, None if done else ErrorCode.CANCEL)
            self.stream = None
        self.settle(status)

    def settle(self, status: Status) -> None:
        """Make the status known. Kinds that still hold messages for the application do it later."""
        self.status = status
        if self._open_waiters is not None:
            self._wake_open()
        if self._head_waiters is not None:
            self._wake_head()
        if self._end_waiters is not None:
            waiters, self._end_waiters = self._end_waiters, None
            _wake(waiters)
        if self.on_status is not None:
            self.on_status()

    def _wake_head(self) -> None:
        waiters, self._head_waiters = self._head_waiters, None
        _wake(waiters or ())

    def _wake_open(self) -> None:
        waiters, self._open_waiters = self._open_waiters, None
        _wake(waiters or ())

    # --- for the face ----------------------------------------------------------------------------------------------

    async def ended(self) -> Status:
        """The status, when there is one. Cancelling this cancels nothing else."""
        if self.status is None:
            future = self.core.loop.create_future()
            if self._end_waiters is None:
                self._end_waiters = []
            self._end_waiters.append(future)
            await future
        assert self.status is not None
        return self.status

    async def opened(self) -> None:
        """Until it has a stream, or the end."""
        while self.stream is None and not self.over:
            future = self.core.loop.create_future()
            if self._open_waiters is None:
                self._open_waiters = []
            self._open_waiters.append(future)
            await future

    async def begun(self) -> None:
        """Until the first headers are here, or the end."""
        if self.head is None and self.status is None:
            future = self.core.loop.create_future()
            if self._head_waiters is None:
                self._head_waiters = []
            self._head_waiters.append(future)
            await future

    def initial(self) -> grpc.aio.Metadata:
        """A copy of what the server sent first."""
        return grpc.aio.Metadata(*self.head.metadata) if self.head is not None else grpc.aio.Metadata()

    def error(self) -> BaseException:
        """What a call that did not succeed raises."""
        if self.cancelled_here:
            return asyncio.CancelledError()
        status = self.status
        assert status is not None
        where = self.connection.endpoint if self.connection is not None else self.core.target
        return grpc.aio.AioRpcError(
            status.code,
            self.initial(),
            grpc.aio.Metadata(*status.trailing),
            details=status.details,
            debug_error_string=f"{self.method.path} at {where}: {status.code.name}, {status.details}",
        )


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)


class UnaryResponse(Rpc):
    """A call whose answer is one message."""

    _body: bytes | bytearray | None = None
    _message: bytes | None = None
    _result: Any = None
    _deserialized = False
    _future: asyncio.Future[None] | None = None

    def data(self, data: bytes, ended: bool) -> None:
        """A part of the answer came; it is the whole one mostly."""
        body = self._body
        if body is None:
            self._body = data
        elif isinstance(body, bytearray):
            body += data
        else:
            self._body = body = bytearray(body)
            body += data
        size = len(self._body)  # type: ignore[arg-type]
        if size > self.core.settings.max_receive_message + PREFIX_BYTES:
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, self._larger(size))
            return
        connection, stream = self.connection, self.stream
        if connection is not None and stream is not None:
            connection.consumed(stream, len(data))
        if ended:
            self.fail(grpc.StatusCode.INTERNAL, "the server ended the call without a status")

    def response(self, headers: HeaderBlock, data: bytes, trailers: HeaderBlock) -> None:
        """All of the answer came at once: the shape of nearly every one, so that this way must be short."""
        head, tail = head_of(headers), head_of(trailers)
        if head.error is not None or not tail.successful or tail.metadata or self._head_waiters is not None:
            super().response(headers, data, trailers)
            return
        self.stream = None
        self.head = head
        try:
            self._message = unframe(data, self.core.settings.max_receive_message, head.inflate)
        except StatusError as error:
            self._broken(error)
            return
        connection = self.connection
        if connection is not None and head.accepts is not connection.accepts and head.accepts:
            connection.accepts = head.accepts
        self.end(SUCCESS)

    def _larger(self, size: int) -> str:
        return f"Received message larger than max ({size} vs. {self.core.settings.max_receive_message})"

    def forget(self) -> None:
        """It will be begun again."""
        super().forget()
        self._body = None

    def _whole(self, successful: bool) -> bool:
        if not successful:
            return True
        head, body = self.head, self._body
        if head is None or body is None:
            self.fail(grpc.StatusCode.INTERNAL, "the server ended the call without an answer")
            return False
        self._body = None
        try:
            self._message = unframe(bytes(body), self.core.settings.max_receive_message, head.inflate)
        except StatusError as error:
            self._broken(error)
            return False
        return True

    def settle(self, status: Status) -> None:
        """Wake who awaits the call."""
        self._body = None
        super().settle(status)
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def wait(self) -> asyncio.Future[None]:
        """The one future that all who await the call wait for."""
        future = self._future
        if future is None:
            future = self._future = self.core.loop.create_future()
        return future

    def result(self) -> Any:
        """The answer, deserialized once. Raises what the call's end means, or what the deserializer raises."""
        if self._deserialized:
            return self._result
        message = self._message
        if message is None:
            raise self.error()
        deserializer = self.method.deserializer
        self._result = deserializer(message) if deserializer is not None else message
        self._deserialized = True
        self._message = None
        return self._result

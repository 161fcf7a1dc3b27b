"""What a handler sees of its call, and says about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from nebuladb.rpc import compression
from nebuladb.rpc.metadata import encode_metadata
from nebuladb.rpc.serving.exchange import Exchange, MetadataLike

MAX_DONE_CALLBACKS: Final = 100


class Call(Exchange, grpc.aio.ServicerContext[Any, Any]):
    """The context that handlers get."""

    async def read(self) -> Any:
        """The next request, or ``grpc.aio.EOF``."""
        if self._reader is None:
            return grpc.aio.EOF
        message = self.take()
        while message is None:
            if self._cancelled:
                raise asyncio.CancelledError
            if self._peer_ended or self.over:
                return grpc.aio.EOF
            await self._news()
            message = self.take()
        return self.decode(message)

    @property
    def direct(self) -> Call:
        """What carries a stream's messages as bytes, and without a task (``rpc.peer.Direct``); not in grpc.aio."""
        return self

    def deliver_to(self, listener: Callable[[bytes], None]) -> None:
        """Give `listener` each message, as it is on the wire, when it comes; those that are here at once. `read` tells
        of the end only."""
        while not self.over and (message := self.take()) is not None:
            listener(message)
        if self._reader is not None and not self.over:
            self._reader.listener = listener
            self.connection.http2.go_straight(self.stream, self._reader.offer)

    async def write(self, message: Any) -> None:
        """Send a response of a stream. Waits while the peer doesn't take what was sent before."""
        if self.put(message):
            await self.room()

    async def send_initial_metadata(self, initial_metadata: MetadataLike) -> None:
        """Send the headers now, with this metadata. Raises `MetadataError`; `UsageError` if they have been sent."""
        if self._answered or self.over:
            raise grpc.aio.UsageError("the initial metadata has been sent")
        self._head(encode_metadata(initial_metadata))
        self.connection.touched()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: MetadataLike = ()) -> NoReturn:
        """End the call with this status, at once, and raise ``grpc.aio.AbortError`` to end the handler."""
        if self.over:
            raise grpc.aio.UsageError("the call is over")
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, f"aborted with OK: {details}"
        self.end(code, details)
        raise grpc.aio.AbortError("the call was aborted")

    def drop(self) -> None:
        """End the call, of which the client doesn't take what it is sent, at once, and free that. The client sees a
        reset, INTERNAL."""
        if not self.over:
            self.connection.drop(self.stream)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """`abort` with what a ``grpc.Status`` says (``grpc_status.rpc_status.to_status``)."""
        await self.abort(status.code, status.details, tuple(status.trailing_metadata or ()))

    def set_trailing_metadata(self, trailing_metadata: MetadataLike) -> None:
        """Metadata that goes with the status. Raises `MetadataError`."""
        self.plain = False
        self._trailing_fields = encode_metadata(trailing_metadata)
        self._trailing = trailing_metadata

    def trailing_metadata(self) -> Any:
        return self._trailing

    def invocation_metadata(self) -> Any:
        """The client's metadata: a tuple of (name, value), shared by calls that came with the same."""
        decoded = self.request.decoded
        return self.request.metadata() if decoded is None else decoded

    def set_code(self, code: grpc.StatusCode) -> None:
        self.plain = False
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def set_details(self, details: str) -> None:
        self.plain = False
        self._details = details

    def details(self) -> str:
        return self._details

    def set_compression(self, compression: grpc.Compression | str) -> None:
        """For this call's responses, if the client can inflate it; "zstd" is known by its name only."""
        if self._answered:
            raise grpc.aio.UsageError("the headers, which name the compression, have been sent")
        self.plain = False
        name = compression if isinstance(compression, str) else _ENCODINGS[compression]
        self._codec = self.request.takes(name)
        self._encoding = name if self._codec is not None else None

    def disable_next_message_compression(self) -> None:
        self._plain_next = True

    def peer(self) -> str:
        return self.connection.peer()

    def peer_identities(self) -> Iterable[bytes] | None:
        key = self.peer_identity_key()
        return None if key is None else self.auth_context()[key]

    def peer_identity_key(self) -> str | None:
        return self.connection.identity()[0]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self.connection.identity()[1]

    def time_remaining(self) -> Any:
        """Seconds until the deadline, never less than 0; None without one."""
        timeout = self.request.timeout
        return None if timeout is None else max(0.0, self._begun + timeout - time.monotonic())

    def cancelled(self) -> bool:
        """Whether the client took the call back, or is gone."""
        return self._cancelled

    def done(self) -> bool:
        return self.over

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(context)` when the call is over; at once if it is."""
        if self.over:
            self._call_back(callback)
            return
        self.plain = False
        if self._callbacks is None:
            self._callbacks = []
        if len(self._callbacks) >= MAX_DONE_CALLBACKS:
            raise grpc.aio.UsageError(f"a call has at most {MAX_DONE_CALLBACKS} done callbacks")
        self._callbacks.append(callback)


_ENCODINGS: Final = compression.BY_ENUM

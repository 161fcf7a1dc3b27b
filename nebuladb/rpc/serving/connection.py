"""One client's connection: from its transport to calls, and back."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc

from nebuladb.rpc import framing
from nebuladb.rpc.framing import PREFIX_BYTES
from nebuladb.rpc.http2.connection import Connection
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.events import (
    ConnectionEnded,
    DataReceived,
    HeadersReceived,
    PingAcknowledged,
    StreamReset,
    Writable,
)
from nebuladb.rpc.http2.headers import HeaderBlock
from nebuladb.rpc.http2.stream import Stream
from nebuladb.rpc.metadata import Fields
from nebuladb.rpc.serving import kinds
from nebuladb.rpc.serving.call import Call
from nebuladb.rpc.serving.carrier import WAITS
from nebuladb.rpc.serving.exchange import Exchange
from nebuladb.rpc.serving.limits import ServerLimits
from nebuladb.rpc.serving.request import OK, Request, refusal
from nebuladb.rpc.serving.routes import Route
from nebuladb.rpc.status import OK_TRAILERS, StatusError
from nebuladb.rpc.tls import identity

if TYPE_CHECKING:
    from nebuladb.rpc.serving.lifecycle import Server

_PREFIX: Final = struct.Struct(">BI").unpack_from
_LAST_STREAM: Final = b"last one"
_ALIVE: Final = b"alive ??"
_BUSY: Final = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many calls as this server takes are in progress")


class ServerConnection(asyncio.Protocol):
    """The protocol of a connection that speaks HTTP/2.

    What is sent gathers in `http2` and leaves in one write: at the end of `data_received`, or, for what handlers say
    later, once a turn of the loop (`touched`).
    """

    __slots__ = (
        "_active",
        "_closing",
        "_held",
        "_identity",
        "_paused_since",
        "_peer",
        "_pinged",
        "_stalled",
        "_touched",
        "_transport",
        "_writers",
        "calls",
        "http2",
        "limits",
        "opened",
        "paused",
        "server",
    )

    def __init__(self, server: Server, transport: asyncio.Transport, now: float) -> None:
        self.server = server
        self.limits: ServerLimits = server.limits
        self.http2 = Connection(client=False, limits=server.limits.http2)
        self.calls = 0
        """In progress: their handlers have not returned."""
        self.opened = now
        self.paused = False
        """The peer doesn't read what we send."""
        self._transport = transport
        self._active = now
        self._paused_since = 0.0
        self._closing = 0.0
        self._pinged = 0.0
        self._touched = False
        self._peer: str | None = None
        self._identity: tuple[str | None, Mapping[str, list[bytes]]] | None = None
        self._writers: list[Exchange] = []
        """Calls that put messages since the last `flush`."""
        self._stalled: list[Exchange] = []
        """Calls that wait until the peer reads."""
        self._held: dict[Stream, tuple[float, int]] | None = None
        """Streams with data that waits for the peer's window: since when, and how much it was then."""
        transport.set_write_buffer_limits(high=self.limits.transport_bytes)

    # --- the transport ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._active = now
        self._pinged = 0.0
        # Until the flush below nobody needs to schedule one.
        self._touched = True
        http2, server, most = self.http2, self.server, self.limits.message_bytes
        for event in http2.receive(data, now):
            if type(event) is HeadersReceived:
                request, body = event.headers.memo, event.data
                if body is not None and request is not None and request.direct is not None:
                    size = len(body) - PREFIX_BYTES
                    # The shape of nearly every request; `_headers` knows all others.
                    if 0 <= size <= most and server.calls < server.max_calls and _PREFIX(body) == (0, size):
                        route = request.direct
                        self._direct(Call(self, event.stream, request, route, now), route, body)
                        continue
                self._headers(event, now)
            elif type(event) is DataReceived:
                self._data(event)
            else:
                self._rare(event)
        self._touched = False
        if self._writers:
            self._push()
        out = http2.take()
        if out:
            self._transport.write(out)
        if http2.closed:
            self.close(now)

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        for stream in list(self.http2.streams.values()):
            if stream.owner is not None:
                stream.owner.lost()
        self.http2.close()
        self._wake()
        self.server.disconnected(self)

    def pause_writing(self) -> None:
        # What it sends now would only make more that it doesn't read.
        self.paused = True
        self._paused_since = time.monotonic()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._wake()

    # --- what comes in ---------------------------------------------------------------------------------------------

    def _headers(self, event: HeadersReceived, now: float) -> None:
        stream, block = event.stream, event.headers
        if stream.owner is not None:
            # Trailers of a request: gRPC has none, HTTP may.
            self._data(DataReceived(stream, b"", ended=True))
            return
        request: Request = block.memo or self._request(block)
        server = self.server
        if request.answer is not None:
            self.refuse(stream, request.answer)
        elif server.calls >= server.max_calls:
            self.refuse(stream, _BUSY)
        else:
            route = request.route
            call = Call(self, stream, request, route, now)
            if route is None or route.request_streaming:
                self._count(call)
                self._listen(call, route, event)
            elif event.ended:
                self._begin(call, route, event.data or b"")
            else:
                # The message follows, nearly always whole. Until then the call is not counted: streams that wait for
                # the rest of their requests, or pretend to, are bounded by connection, and must not keep out others.
                stream.owner = call

    def _request(self, block: HeaderBlock) -> Request:
        request = block.memo = Request(block.fields, self.server.routes)
        return request

    def _direct(self, call: Call, route: Route, body: bytes) -> None:
        """Run a unary coroutine on its framed, plain message. The hot path: the common case of each step stands here.

        A call that ends in here is never counted: it is never in progress while anybody else looks.
        """
        message = body[PREFIX_BYTES:]
        try:
            request = route.deserialize(message) if route.deserialize is not None else message
            coroutine = route.behaviour(request, call)
        except Exception:
            self._count(call)
            self._run(call, route, message)
            return
        try:
            response = self.server.carriers.step(coroutine, call)
        except BaseException as error:
            self._count(call)
            call.fail(error)
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
            return
        if response is WAITS:
            self._count(call)
            call.stream.owner = call
            if call.request.timeout is not None:
                call.arm()
            return
        try:
            data = response if route.serialize is None else route.serialize(response)
            data = b"\0" + len(data).to_bytes(4, "big") + data
        except Exception:
            data = b""
        if data and call.plain and len(data) <= self.limits.response_bytes:
            call.over = True
            self.http2.respond(call.stream, OK, data, OK_TRAILERS)
            if call.stream.waiting:
                self.hold(call.stream)
        else:
            self._count(call)
            call.finish(response)

    def _count(self, call: Call) -> None:
        """A call is in progress, until it is `released`."""
        call.counted = True
        self.server.calls += 1
        self.calls += 1

    def _begin(self, call: Call, route: Route, body: bytes) -> None:
        """Run a unary request whose body is here."""
        if self.server.calls >= self.server.max_calls:
            self.refuse(call.stream, _BUSY)
            call.over = True
            return
        size = len(body) - PREFIX_BYTES
        if route.direct and 0 <= size <= self.limits.message_bytes and _PREFIX(body) == (0, size):
            self._direct(call, route, body)
            return
        self._count(call)
        try:
            message = framing.unframe(body, self.limits.message_bytes, call.request.inflate)
        except StatusError as error:
            call.fail(error)
        else:
            self._run(call, route, message)

    def _run(self, call: Call, route: Route, message: bytes | None) -> None:
        try:
            coroutine = kinds.start(call, route, message)
        except Exception as error:
            call.fail(error)
        else:
            self._carry(call, coroutine)

    def _carry(self, call: Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.server.carriers.run(coroutine, call)
        if call.task is not None:
            call.stream.owner = call
            if call.request.timeout is not None:
                call.arm()

    def _listen(self, call: Call, route: Route | None, event: HeadersReceived) -> None:
        """The request is a stream, or interceptors must say whether it is one."""
        call.stream.owner = call
        call.listen()
        if event.data is not None or event.ended:
            call.feed(event.data or b"", ended=event.ended, counted=True)
        if not call.over:
            if route is None:
                self._carry(call, kinds.resolved(call))
            else:
                self._run(call, route, None)

    def _data(self, event: DataReceived) -> None:
        stream, data = event.stream, event.data
        call: Call | None = stream.owner
        if call is None or call.over:
            self.http2.consumed(stream, len(data))
        elif call.counted:
            call.feed(data, ended=event.ended)
        elif event.ended and not call.listening and call.route is not None:
            self.http2.consumed(stream, len(data))
            self._begin(call, call.route, data)
        else:
            if not call.listening:
                call.listen()
            call.feed(data, ended=event.ended)
            self._gathered(call)

    def _gathered(self, call: Call) -> None:
        """Run a unary request that came in pieces, if this was the last."""
        route = call.route
        if call.complete and not call.over and route is not None:
            try:
                body = framing.frame(call.whole())
            except StatusError as error:
                call.fail(error)
            else:
                self._begin(call, route, body)

    def _rare(self, event: object) -> None:
        if isinstance(event, StreamReset):
            if event.stream.owner is not None:
                event.stream.owner.lost()
        elif isinstance(event, Writable):
            self._emptied(event.stream)
        elif isinstance(event, PingAcknowledged):
            if event.payload == _LAST_STREAM:
                self.http2.finish()
                self._close_if_done()
        elif isinstance(event, ConnectionEnded):
            for stream in list(self.http2.streams.values()):
                if stream.owner is not None:
                    stream.owner.lost()

    def _emptied(self, stream: Stream) -> None:
        if self._held is not None:
            self._held.pop(stream, None)
        call: Call | None = stream.owner
        if call is not None:
            call.writable()
            if call.over and call.unread:
                self.http2.reset(stream, ErrorCode.NO_ERROR)

    # --- what goes out ---------------------------------------------------------------------------------------------

    def refuse(self, stream: Stream, answer: Fields) -> None:
        """Answer a request that becomes no call."""
        self.http2.send_headers(stream, answer, end=True)
        self.http2.reset(stream, ErrorCode.NO_ERROR)

    def sent(self, call: Exchange, stream: Stream) -> None:
        """A call's status is out, or waits behind its data."""
        if stream.waiting:
            self.hold(stream)
            stream.owner = call
        elif call.unread:
            # RFC 9113, 8.1: the answer is complete without the rest of the request; the client may stop sending it.
            self.http2.reset(stream, ErrorCode.NO_ERROR)
        if not self._touched:
            self._touched = True
            self.server.touched(self)

    def touched(self) -> None:
        """There may be something to send at the end of this turn."""
        if not self._touched:
            self._touched = True
            self.server.touched(self)

    def writes(self, call: Exchange) -> None:
        """`call` put something: `flush` pushes it."""
        self._writers.append(call)
        if not self._touched:
            self._touched = True
            self.server.touched(self)

    def _push(self) -> None:
        writers, self._writers = self._writers, []
        for call in writers:
            call.push()
            if call.stream.waiting:
                self.hold(call.stream)

    def flush(self) -> None:
        """Write what has gathered."""
        self._touched = False
        if self._writers:
            self._push()
        out = self.http2.take()
        if out:
            self._transport.write(out)
        if self.http2.going_away:
            self._close_if_done()

    def hold(self, stream: Stream) -> None:
        """Remember since when the peer gives `stream` no window."""
        if self._held is None:
            self._held = {}
        if stream not in self._held:
            self._held[stream] = (time.monotonic(), stream.waiting)

    def waits(self, call: Exchange) -> None:
        """`call` goes on when the peer reads, or opens its window."""
        if self.paused:
            self._stalled.append(call)

    def _wake(self) -> None:
        stalled, self._stalled = self._stalled, []
        for call in stalled:
            call.writable()

    # --- the end ---------------------------------------------------------------------------------------------------

    def released(self, call: Exchange) -> None:
        """A call's handler has returned."""
        self.calls -= 1
        self.server.released()

    def close(self, now: float) -> None:
        """Close the transport when what was written has left; `sweep` aborts it if that takes too long."""
        if not self._closing:
            self._closing = now
            self._transport.close()

    def _close_if_done(self) -> None:
        if not self.http2.streams and self.server.stopping:
            self.http2.close()
            self._write_rest()

    def _write_rest(self) -> None:
        out = self.http2.take()
        if out:
            self._transport.write(out)
        self.close(time.monotonic())

    def shutdown(self) -> None:
        """Take no new calls and let those in progress end (GOAWAY; RFC 9113, 6.8)."""
        self.http2.shutdown()
        self.http2.ping(_LAST_STREAM)
        self.flush()

    def stop(self, why: str) -> None:
        """End everything now."""
        for stream in list(self.http2.streams.values()):
            if stream.owner is not None:
                stream.owner.stop(why)
        self.http2.close(ErrorCode.NO_ERROR, why)
        self._write_rest()

    def sweep(self, now: float) -> None:
        """Look at the times that `ServerLimits` bounds."""
        limits, http2 = self.limits, self.http2
        if self._closing:
            if now - self._closing > limits.linger_seconds:
                self._transport.abort()
            return
        if self.paused and now - self._paused_since > limits.held_seconds:
            self._transport.abort()
        elif not http2.ready and now - self.opened > limits.http2.preface_seconds:
            http2.close(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS came")
            self._write_rest()
        elif self._pinged:
            if now - self._pinged > limits.keepalive_timeout:
                self._transport.abort()
        elif not http2.streams and now - self._active > limits.http2.idle_seconds:
            self.http2.close(ErrorCode.NO_ERROR, "idle")
            self._write_rest()
        elif now - self._active > limits.keepalive_seconds:
            self._pinged = now
            http2.ping(_ALIVE)
            self.flush()
        if self._held:
            self._sweep_held(now, self._held)

    def _sweep_held(self, now: float, held: dict[Stream, tuple[float, int]]) -> None:
        for stream, (since, waiting) in list(held.items()):
            if not stream.waiting:
                del held[stream]
            elif now - since > self.limits.held_seconds:
                if waiting - stream.waiting >= self.limits.held_progress:
                    held[stream] = (now, stream.waiting)
                    continue
                del held[stream]
                self.http2.reset(stream, ErrorCode.CANCEL)
                if stream.owner is not None:
                    stream.owner.lost()
                self.touched()

    # --- who it is -------------------------------------------------------------------------------------------------

    def peer(self) -> str:
        """As grpc writes addresses: ``ipv4:127.0.0.1:4711``, ``ipv6:[::1]:4711``."""
        if self._peer is None:
            name = self._transport.get_extra_info("peername")
            if isinstance(name, tuple) and len(name) >= 2:
                self._peer = f"ipv6:[{name[0]}]:{name[1]}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"
            else:
                self._peer = "unknown"
        return self._peer

    def identity(self) -> tuple[str | None, Mapping[str, list[bytes]]]:
        """What TLS knows of the peer: the property that identifies it, and all of them."""
        if self._identity is None:
            self._identity = identity(self._transport.get_extra_info("ssl_object"))
        return self._identity

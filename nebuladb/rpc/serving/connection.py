"""One client's connection: from its transport to calls, and back."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Coroutine, Iterable, Iterator
from itertools import chain, islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

from nebuladb.env import probe
from nebuladb.rpc import framing
from nebuladb.rpc.framing import PREFIX_BYTES
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    HeadersReceived,
    PingAcknowledged,
    StreamReset,
    Writable,
)
from nebuladb.rpc.http2.headers import HeaderBlock
from nebuladb.rpc.http2.stream import State, Stream
from nebuladb.rpc.serving import kinds
from nebuladb.rpc.serving.call import Call
from nebuladb.rpc.serving.carrier import WAITS
from nebuladb.rpc.serving.exchange import LARGE, Exchange
from nebuladb.rpc.serving.outgoing import LAST_STREAM, Outgoing
from nebuladb.rpc.serving.request import OK, Request, refusal
from nebuladb.rpc.serving.routes import Route
from nebuladb.rpc.serving.turns import MOST_HELD
from nebuladb.rpc.status import OK_TRAILERS, UNDONE, StatusError

if TYPE_CHECKING:
    from nebuladb.rpc.serving.lifecycle import Server

SMALL_READ: Final = 4 << 10
"""Octets that are handled as they come: at most 140 requests. More takes of the time that all connections share in a
turn of the loop, and waits for a later one if that is used."""
SLICE: Final = 64 << 10
"""Octets of a larger read that are taken apart together: with less of them, frames of data are copied more often."""
UNTIMED: Final = 8
"""Events of it that are handled between two looks at the clock."""
MAX_TAKEN_UP: Final = 256
"""Requests that waited and are begun in one turn: about as many as come in one read."""
_PREFIX: Final = struct.Struct(">BI").unpack_from
_BUSY: Final = refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "as many calls as this server takes are in progress; try again later", UNDONE
)
_HEADERS: Final = refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "the headers of the calls in progress take too much memory; try again later, or send fewer",
    UNDONE,
)


class ServerConnection(Outgoing):
    """The protocol of a connection that speaks HTTP/2: what comes in, and what is done about it."""

    __slots__ = ("_backlog", "_input", "_input_at", "_later")

    def __init__(self, server: Server, transport: asyncio.Transport, now: float) -> None:
        super().__init__(server, transport, now)
        self._input = b""
        """What was read and waits for its turn, from `_input_at` on. Nothing more is read meanwhile."""
        self._input_at = 0
        self._backlog: Iterator[Event] | None = None
        """Events that wait for a turn, or until the peer reads."""
        self._later: dict[Call, tuple[Route, bytes]] = {}
        """Unary requests that wait until it has taken answers."""

    # --- the transport ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        turns = self.server.turns
        if (len(data) > SMALL_READ and turns.held < MOST_HELD) or self._backlog is not None or self._input:
            first = self._backlog is None and not self._input
            self._input = self._input[self._input_at :] + data
            self._input_at = 0
            turns.held += len(data)
            if not (first and turns.at_once(self)):
                self._transport.pause_reading()
                turns.add(self)
            return
        http2 = self.http2
        self._active = now = time.monotonic()
        self._pinged = 0.0
        if http2.straight is None or not http2.part(data):
            self._backlog = self._handle(http2.receive(data, now), now)

    def proceed(self, until: float) -> bool:
        """Handle a slice of what waits, or less if the time is up (`Turns`)."""
        if self.paused or self._transport.is_closing():
            return False  # `resume_writing` takes it up; or nobody will
        now = time.monotonic()
        events = self._backlog
        if events is None:
            at = self._input_at
            data = self._input[at : at + SLICE]
            self._input_at = at + len(data)
            self.server.turns.held -= len(data)
            if self._input_at == len(self._input):
                self._input, self._input_at = b"", 0
            self._active, self._pinged = now, 0.0
            events = self._backlog = iter(self.http2.receive(data, now))
        self._handle(chain.from_iterable(self._timely(events, until)), now)
        if self.paused or self._transport.is_closing():
            return False
        if self._backlog is None and not self._input:
            self._transport.resume_reading()
            return False
        return True

    def _timely(self, events: Iterator[Event], until: float) -> Iterator[Iterator[Event]]:
        """The backlog as far as there is time, a few events between two looks at the clock."""
        while True:
            yield islice(events, UNTIMED)
            if not length_hint(events):
                self._backlog = None
                return
            if time.monotonic() >= until:
                return

    def _handle(self, events: Iterable[Event], now: float) -> Iterator[Event] | None:
        """Do what the events say, and send what comes of it at once. Those that are left, when the peer must read
        first."""
        # Until the flush below nobody needs to schedule one.
        self._touched = True
        http2, server, most, later = self.http2, self.server, self.limits.message_bytes, self._later
        events = iter(events)
        rest: Iterator[Event] | None = events
        for event in events:
            if type(event) is HeadersReceived:
                request, body = event.headers.memo, event.data
                if body and request is not None and request.direct is not None and not (http2.waiting or later):
                    size = len(body) - PREFIX_BYTES
                    # The shape of nearly every request; `_headers` knows all others.
                    if 0 <= size <= most and server.calls < server.max_calls and _PREFIX(body) == (0, size):
                        route = request.direct
                        self._direct(Call(self, event.stream, request, route, now), route, body)
                        if self.paused:
                            break
                        continue
                self._headers(event, now)
            elif type(event) is DataReceived:
                call = event.stream.owner
                if call is not None and call.counted and not call.over:
                    call.feed(event.data, ended=event.ended)  # of a stream, mostly
                else:
                    self._data(event)
            else:
                self._rare(event)
            if self.paused:
                break
        else:
            rest = None
        if self._later:
            self._take_up()
        self._touched = False
        if self._input and not (self.paused or http2.closed):
            self.touched()  # the next slice follows: what answers both leaves in one write
        else:
            if self._writers:
                self._push()
            self._send()
        if http2.closed:
            self.close(now)
        elif http2.going_away:
            self._close_if_done()
        # A thousand requests in one read may ask for a thousand large answers: the rest waits until the peer has taken
        # those that there are.
        return rest if rest is not None and length_hint(rest) else None

    def _go_on(self) -> None:
        """With requests that waited until the peer read."""
        if self._later and not self.paused and not self._transport.is_closing():
            self._handle((), time.monotonic())

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        backlog, self._backlog = self._backlog, None
        self.server.turns.held -= len(self._input) - self._input_at
        self._input, self._input_at = b"", 0
        for event in (*(backlog or ()), *self.http2.told()):
            if isinstance(event, StreamReset):
                self._rare(event)  # its stream is none of `http2.streams` any more
        for stream in list(self.http2.streams.values()):
            if stream.owner is not None:
                stream.owner.lost()
        self.http2.close()
        self.paused = False  # uvloop's transport tells a size still: what sends after this would count it for ever
        self._count_unread()
        self._wake()
        self.server.disconnected(self)

    def pause_writing(self) -> None:
        # What it sends now would only make more that it doesn't read.
        self.paused = True
        self._paused_since, self._paused_taken = time.monotonic(), self._taken()
        self._transport.pause_reading()
        self._count_unread()

    def resume_writing(self) -> None:
        self.paused = False
        self._count_unread()
        self._active, self._pinged = time.monotonic(), 0.0  # it reads: it lives
        if not self._transport.is_closing():
            if self._backlog is not None or self._input:
                self.server.turns.add(self)  # which reads on when that is done
            else:
                self._transport.resume_reading()
            if self._later:
                self.server.loop.call_soon(self._go_on)
            if self.http2.held_back:
                self.touched()
        self._wake()

    # --- what comes in ---------------------------------------------------------------------------------------------

    def _headers(self, event: HeadersReceived, now: float) -> None:
        stream, block = event.stream, event.headers
        if stream.owner is not None or stream.answered:
            # Trailers of a request: gRPC has none, HTTP may. A call whose answer waits for its window is nobody's.
            self._data(DataReceived(stream, b"", ended=True))
            return
        request: Request = block.memo or self._request(block)
        server = self.server
        if request.answer is not None:
            self.refuse(stream, request.answer)
        elif server.calls >= server.max_calls:
            self.refuse(stream, _BUSY)
        elif server.headers > self.limits.headers_total and request.cost > self.limits.headers_each:
            self.refuse(stream, _HEADERS)
        else:
            route = request.route
            call = Call(self, stream, request, route, now)
            if route is None or route.request_streaming:
                call.count()
                self._listen(call, route, event)
            elif event.ended:
                self._begin(call, route, event.data or b"")
            else:
                # The message follows, nearly always whole. Until then the call is not counted: streams that wait for
                # the rest of their requests, or pretend to, are bounded by connection, and must not keep out others.
                stream.owner = call
                self.gather(call, 0)
                call.arm()

    def _request(self, block: HeaderBlock) -> Request:
        request = block.memo = Request(block.fields, block.size, self.server.routes)
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
            call.count()
            self._run(call, route, message)
            return
        try:
            response = self.server.carriers.step(coroutine, call)
        except BaseException as error:
            call.count()
            call.fail(error)
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
            return
        if response is WAITS:
            call.count()
            call.stream.owner = call
            if call.request.timeout is not None:
                call.arm()
            return
        try:
            data = response if route.serialize is None else route.serialize(response)
            data = b"\0" + len(data).to_bytes(4, "big") + data
        except Exception:
            data = b""
        size = len(data)
        overfull = size > LARGE and self.overfull(size)
        if data and call.plain and not call.over and size <= self.limits.response_bytes and not overfull:
            call.over = True
            self.http2.respond(call.stream, OK, data, OK_TRAILERS)
            if size > LARGE:
                self.answered(size)
            if call.stream.waiting:
                self.hold(call.stream)
        else:
            call.count()
            call.finish(response)

    def _begin(self, call: Call, route: Route, body: bytes) -> None:
        """Run a unary request whose body is here, or let it wait until its answer has room."""
        if self._later or self._full():  # none overtakes those that wait
            probe("rpc: a request waits until the peer takes answers")
            self.ungather(call)
            call.stream.owner = call
            if self.gather(call, len(body)):
                self._later[call] = route, body
                call.arm()
        else:
            self._start(call, route, body)

    def _full(self) -> bool:
        """Whether so many answers wait for this peer that its requests wait, too."""
        waiting = self.http2.waiting
        if not waiting:
            return False
        return waiting > self.limits.ahead_bytes or self.overfull()

    def _take_up(self) -> None:
        """Begin the requests that waited, in their order, as far as there is room; so many in a turn."""
        for _ in range(MAX_TAKEN_UP):
            if not self._later or self.paused or self._full():
                return
            call = next(iter(self._later))
            route, body = self._later[call]
            self._start(call, route, body)
        self.server.loop.call_soon(self._go_on)

    def ungather(self, call: Exchange) -> None:
        super().ungather(call)
        if self._later:
            self._later.pop(cast(Call, call), None)

    def sweep(self, now: float) -> None:
        if self._input or self._backlog is not None:
            self._active, self._pinged = now, 0.0  # its pong may be behind what waits here
        super().sweep(now)
        if self._later:
            self._go_on()  # others may have made room

    def _start(self, call: Call, route: Route, body: bytes) -> None:
        """It is whole, and waits for nothing any more."""
        if call.gathered:
            self.ungather(call)
            call.disarm()
        call.stream.owner = None
        if self.server.calls >= self.server.max_calls:
            self.refuse(call.stream, _BUSY)
            call.over = True
            return
        size = len(body) - PREFIX_BYTES
        if route.direct and 0 <= size <= self.limits.message_bytes and _PREFIX(body) == (0, size):
            self._direct(call, route, body)
            return
        call.count()
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
            self.http2.consumed(stream, min(len(data), stream.unread))
        elif call.counted:
            call.feed(data, ended=event.ended)
        elif event.ended and not call.listening and call.route is not None:
            self.http2.consumed(stream, len(data))
            self._begin(call, call.route, data)
        else:
            if not call.listening:
                call.listen()
            if self.gather(call, len(data)):
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
            if event.payload == LAST_STREAM:
                self._acknowledged = True
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
        elif stream.state is State.HALF_CLOSED_LOCAL:
            self.http2.reset(stream, ErrorCode.NO_ERROR)  # as `sent` does of one that waits for nothing

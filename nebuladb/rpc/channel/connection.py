"""One connection to a server: bytes between a transport and the HTTP/2 state, events to the calls that they concern."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol, cast

import grpc

from nebuladb.env import probe
from nebuladb.rpc import http2
from nebuladb.rpc.channel.rpc import Rpc
from nebuladb.rpc.channel.settings import Settings
from nebuladb.rpc.http2.errors import ErrorCode, LocalProtocolError
from nebuladb.rpc.http2.events import (
    ConnectionEnded,
    DataReceived,
    GoingAway,
    HeadersReceived,
    PingAcknowledged,
    ResponseReceived,
    StreamReset,
    StreamsAllowed,
    Writable,
)
from nebuladb.rpc.http2.headers import FIELD_OVERHEAD
from nebuladb.rpc.http2.stream import Stream
from nebuladb.rpc.metadata import Fields

UNSENT_BYTES: Final = 1 << 16
"""Output that goes to the transport before the turn ends; the transport then says whether it can take more."""
QUIET_SECONDS: Final = 0.05
"""Silence after which a call's bytes leave a turn later, behind whatever came in meanwhile. (A loop that was busy while
its server restarted would else write calls to a dead connection, and nobody could say what became of them.)"""
KEEPALIVE: Final = b"nebulaka"
"""Payload of our pings."""


class Owner(Protocol):
    """Who made the connection (`Subchannel`)."""

    def settled(self, connection: Connection) -> None:
        """The server's preface came: calls may begin."""
        ...

    def retired(self, connection: Connection) -> None:
        """The server, or the ids' end, wants no new calls here; those that run go on."""
        ...

    def lost(self, connection: Connection, why: str) -> None:
        """It is over; calls on it have been told."""
        ...

    def again(self, rpc: Rpc) -> None:
        """The server has not looked at this call: begin it on another connection."""
        ...

    def throttled(self) -> None:
        """The server took our keepalive pings for too many."""
        ...


class Connection(asyncio.Protocol):
    """Calls open streams here (`open`, `unary`); all that they write in a turn of the loop leaves in one write.

    Every live call is in `calls` from its start on this connection to its end, and no other object keeps it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        limits: http2.Limits,
        owner: Owner,
        endpoint: str,
        keepalive: float,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._owner = owner
        self.http2 = http2.Connection(client=True, limits=limits)
        self.http2.whole_responses = True
        self.endpoint = endpoint
        self.calls: dict[Rpc, None] = {}
        self.waiting: dict[Rpc, None] = {}
        """Calls that wait for the server's MAX_CONCURRENT_STREAMS, or for the transport to take more, in order."""
        self.usable = False
        """New calls may begin here."""
        self.accepts: frozenset[str] = frozenset()
        """Encodings that the server said it takes."""
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._ready = False
        self._scheduled = False
        self._fresh: list[Rpc] = []
        """Calls that were begun since the last flush: none of their bytes have left."""
        self._unsent = 0
        """Bytes of request messages since the last flush."""
        self._paused = False
        self._blocked: dict[Rpc, None] = {}
        """Calls whose writes wait for the transport."""
        self._heard = 0.0
        self._keepalive = keepalive
        self._watch: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] = loop.create_future()
        self._pinged = 0.0
        """When the last keepalive ping went out; 0: none is under way."""
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            HeadersReceived: self._on_headers,
            ResponseReceived: self._on_response,
            DataReceived: self._on_data,
            StreamReset: self._on_reset,
            Writable: self._on_writable,
            StreamsAllowed: self._on_allowed,
            PingAcknowledged: self._on_pong,
            GoingAway: self._on_going_away,
            ConnectionEnded: self._on_ended,
        }

    # --- for calls -------------------------------------------------------------------------------------------------

    def admit(self, rpc: Rpc) -> None:
        """Begin `rpc` here now, or when there is room. Fails it if too many wait already."""
        if self.waiting or self._paused:
            self._wait(rpc)
        else:
            self._begin(rpc)

    def _begin(self, rpc: Rpc) -> None:
        self.calls[rpc] = None
        try:
            rpc.begin(self)
            if rpc.over:
                self.calls.pop(rpc, None)
        except http2.StreamLimit:
            del self.calls[rpc]
            self._wait(rpc)
        except LocalProtocolError:
            # The server went away, or the ids are used up.
            del self.calls[rpc]
            self.retire()
            self._owner.again(rpc)

    def _wait(self, rpc: Rpc) -> None:
        if len(self.waiting) >= self._settings.max_waiting_calls:
            rpc.refuse("too many calls wait for the server to allow more streams")
            return
        self.waiting[rpc] = None
        rpc.queued = self.waiting

    def unary(self, rpc: Rpc, headers: Fields, data: bytes) -> Stream:
        """A stream with its whole request. Raises `LocalProtocolError`."""
        stream = self.http2.call(headers, data)
        stream.owner = rpc
        self._fresh.append(rpc)
        if stream.reset:
            self._refuse(rpc)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return stream

    def takes(self, headers: Fields) -> bool:
        """Whether the list is within what the server said it takes (RFC 9113, 6.5.2)."""
        return sum([len(name) + len(value) + FIELD_OVERHEAD for name, value in headers]) <= self.http2.peer.header_list

    def open(self, rpc: Rpc, headers: Fields) -> Stream:
        """A stream whose messages come later. Raises `LocalProtocolError`."""
        stream = self.http2.open(headers)
        stream.owner = rpc
        self._fresh.append(rpc)
        self._schedule()
        return stream

    def send(self, rpc: Rpc, stream: Stream, data: bytes, *, end: bool = False) -> bool:
        """Queue a part of the request; False if the next one should wait for `Rpc.writable`."""
        self._schedule()
        return self.put(rpc, stream, data, end=end)

    def put(self, rpc: Rpc, stream: Stream, data: bytes, *, end: bool = False) -> bool:
        """`send`, where the caller will `flush`."""
        self.http2.send_data(stream, data, end=end)
        if stream.reset and stream.owner is rpc:
            self._refuse(rpc)
            return True
        self._unsent += len(data)
        if self._unsent >= UNSENT_BYTES:
            self.flush()
        if self._paused:
            self._blocked[rpc] = None
            return False
        return not stream.waiting

    def _refuse(self, rpc: Rpc) -> None:
        self._schedule()
        why = f"too much waits already for {self.endpoint} to take it"
        if rpc.whole():
            rpc.refuse(why)  # of its one message the end is still here: no handler has seen any of it
        else:
            rpc.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, why)

    def congested(self, rpc: Rpc, stream: Stream) -> bool:
        """Whether what was sent still waits; `Rpc.writable` is called when that changes."""
        if self._paused and not self.closed:
            self._blocked[rpc] = None
            return True
        return bool(stream.waiting)

    def consumed(self, stream: Stream, size: int) -> None:
        """The call has taken so many bytes of the answer."""
        if not self.closed:
            self.http2.consumed(stream, size)
            self._schedule()

    def leave(self, rpc: Rpc, stream: Stream | None, code: ErrorCode | None) -> None:
        """The call is over; with a `code` its stream is reset."""
        self.calls.pop(rpc, None)
        if self._blocked:
            self._blocked.pop(rpc, None)
        if stream is not None:
            stream.owner = None
            if code is not None and not self.closed:
                self.http2.reset(stream, code)
                self._schedule()
            if stream.unread:
                # The application hasn't read that yet, and then says nothing of it: the call has no stream any more.
                self.consumed(stream, stream.unread)
        if not self.calls and not self.usable and self._ready:
            self._loop.call_soon(self._drained)

    # --- for the owner ---------------------------------------------------------------------------------------------

    def close(self, why: str = "") -> None:
        """Say goodbye and end; calls that are left fail with UNAVAILABLE."""
        if self.closed:
            return
        self.http2.close(ErrorCode.NO_ERROR, why)
        self._end(why or "the channel closed the connection")

    async def gone(self) -> None:
        """Until the transport is, after `close`."""
        if self._transport is not None and not self._gone.done():
            await asyncio.shield(self._gone)

    def abort(self) -> None:
        """Cut the transport."""
        if self._transport is not None:
            self._transport.abort()

    def retire(self) -> None:
        """No new calls; close when those that run are over."""
        self._retire()
        if not self.calls:
            self._drained()

    # --- asyncio ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport stands: send the preface."""
        self._transport = cast(asyncio.Transport, transport)
        self._heard = monotonic()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        http2 = self.http2
        self._heard = now = monotonic()
        if http2.straight is not None and http2.part(data):
            return
        handlers = self._handlers
        woken = False
        for event in http2.receive(data, now):
            if type(event) is DataReceived and (rpc := event.stream.owner) is not None and rpc.listener is not None:
                rpc.data(event.data, event.ended)
            else:
                woken = True
                handlers[type(event)](event)
        if not self._ready and http2.ready and not self.closed:
            woken = True
            self._settle()
        if not woken:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            # Behind the tasks that these events wake, so that what they write leaves in the same write.
            self._loop.call_soon(self._flush)

    def eof_received(self) -> bool | None:
        """The server closed its side; nothing can come, so the whole connection ends."""
        self._end(f"the connection to {self.endpoint} was lost: the server closed it")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        if not self._gone.done():
            self._gone.set_result(None)
        self._end(f"the connection to {self.endpoint} was lost: {exc or 'the server closed it'}")

    def pause_writing(self) -> None:
        """The transport's buffer is full. Reading goes on: if both ends stopped it, neither would ever go on."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has room again."""
        self._paused = False
        self.flush()
        blocked, self._blocked = self._blocked, {}
        for rpc in blocked:
            rpc.writable()
        self._admit_waiting()

    # --- output ----------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._fresh and monotonic() - self._heard > QUIET_SECONDS:
            # One turn for the loop to look what came in, one for that to be handled.
            self._loop.call_soon(self._loop.call_soon, self._flush_at_last)
        else:
            self._flush_at_last()

    def _flush_at_last(self) -> None:
        self._scheduled = False
        self.flush()
        if self.http2.news:
            for event in self.http2.told():
                self._handlers[type(event)](event)

    def flush(self) -> None:
        """Write what has gathered."""
        # While the transport takes nothing, what the server makes us write stays where it is counted.
        if self._paused and not self.closed:
            return
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._unsent = 0
        self._fresh.clear()
        data = self.http2.take()
        if data:
            transport.write(data)

    # --- events ----------------------------------------------------------------------------------------------------

    def _on_headers(self, event: HeadersReceived) -> None:
        rpc = event.stream.owner
        if rpc is not None:
            rpc.headers(event.headers, event.data, event.ended)

    def _on_response(self, event: ResponseReceived) -> None:
        rpc = event.stream.owner
        if rpc is not None:
            rpc.response(event.headers, event.data, event.trailers)

    def _on_data(self, event: DataReceived) -> None:
        rpc = event.stream.owner
        if rpc is None:
            # A call that ended here; what the server sent before it knew still counts for the connection's window.
            self.http2.consumed(event.stream, min(len(event.data), event.stream.unread))
        else:
            rpc.data(event.data, event.ended)

    def _on_reset(self, event: StreamReset) -> None:
        rpc: Rpc | None = event.stream.owner
        if rpc is None:
            return
        if (event.unprocessed or event.code is ErrorCode.REFUSED_STREAM) and rpc.repeatable():
            probe("rpc: a call the server never saw is begun again")
            rpc.retried = True
            event.stream.owner = None
            del self.calls[rpc]
            self._blocked.pop(rpc, None)
            self._owner.again(rpc)
            if not self.calls and not self.usable:
                self._drained()
        else:
            rpc.reset(event.code, unprocessed=event.unprocessed)

    def _on_writable(self, event: Writable) -> None:
        rpc = event.stream.owner
        if rpc is not None and not self._paused:
            rpc.writable()
        elif rpc is not None:
            self._blocked[rpc] = None

    def _on_allowed(self, event: StreamsAllowed) -> None:
        self._admit_waiting()

    def _on_pong(self, event: PingAcknowledged) -> None:
        if self._pinged and self._watch is not None:
            self._pinged = 0.0
            self._watch.cancel()
            self._watch = self._loop.call_later(self._keepalive, self._look)

    def _on_going_away(self, event: GoingAway) -> None:
        probe("rpc: server goes away")
        if event.code is ErrorCode.ENHANCE_YOUR_CALM and event.debug == b"too_many_pings":
            self._owner.throttled()
        self.retire()

    def _on_ended(self, event: ConnectionEnded) -> None:
        probe("rpc: server broke HTTP/2")
        self._end(f"{self.endpoint} broke HTTP/2: {event.code.name}, {event.message}")

    # --- life ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._ready = self.usable = True
        self._owner.settled(self)
        if self._settings.keepalive_time and not self.closed:
            self._watch = self._loop.call_later(self._keepalive, self._look)

    def _look(self) -> None:
        """Keepalive: silence is answered by a ping, silence after it by the end (gRPC's keepalive.md)."""
        now = monotonic()
        if self._pinged and self._heard < self._pinged:
            probe("rpc: keepalive timed out")
            self._end(f"{self.endpoint} is silent: no answer to a keepalive ping", abort=True)
            return
        self._pinged = 0.0
        pause = self._keepalive - (now - self._heard)
        if pause <= 0:
            pause = self._keepalive
            if self.calls or self._settings.keepalive_without_calls:
                self._pinged = now
                pause = self._settings.keepalive_timeout
                self.http2.ping(KEEPALIVE)
                self._schedule()
        self._watch = self._loop.call_later(pause, self._look)

    def _admit_waiting(self) -> None:
        # Nobody is taken out of the line for whom there is no room: it would be at its end then.
        while self.waiting and not self._paused and self.usable and self.http2.has_room():
            rpc = next(iter(self.waiting))
            del self.waiting[rpc]
            rpc.queued = None
            self._begin(rpc)

    def _retire(self) -> None:
        if not self.usable and self._ready:
            return
        self.usable = False
        self._owner.retired(self)
        waiting, self.waiting = self.waiting, {}
        for rpc in waiting:
            rpc.queued = None
            self._owner.again(rpc)

    def _drained(self) -> None:
        if not self.calls and not self.usable:
            self.close()

    def _end(self, why: str, *, abort: bool = False) -> None:
        """The one way out: everything is told, nothing is kept."""
        if self.closed:
            return
        self.closed = True
        self.usable = False
        if self._watch is not None:
            self._watch.cancel()
        fresh, self._fresh = [rpc for rpc in self._fresh if rpc in self.calls and rpc.whole()], []
        for rpc in fresh:
            probe("rpc: a call that never left is begun again")
            del self.calls[rpc]
        if self._transport is not None:
            if not fresh:  # whose bytes, on their way to the next connection, would leave by this one as well
                self.flush()
            # A peer that reads nothing would keep a transport that still has something to say open for ever.
            if abort or self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()
        calls, self.calls = self.calls, {}
        waiting, self.waiting = self.waiting, {}
        self._blocked.clear()
        self._owner.lost(self, why)
        for rpc in calls:
            rpc.fail(grpc.StatusCode.UNAVAILABLE, why)
        for rpc in waiting:
            rpc.queued = None
        for rpc in (*fresh, *waiting):
            self._owner.again(rpc)

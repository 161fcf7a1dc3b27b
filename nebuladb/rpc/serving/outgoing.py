"""What leaves a connection, what is held, and the end of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import grpc

from nebuladb.env import probe
from nebuladb.rpc.http2.connection import Connection
from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.stream import HALF_CLOSED_LOCAL, OPEN, Stream
from nebuladb.rpc.metadata import Fields
from nebuladb.rpc.serving.exchange import Exchange
from nebuladb.rpc.serving.limits import ServerLimits
from nebuladb.rpc.status import UNDONE, StatusError
from nebuladb.rpc.tls import identity

if TYPE_CHECKING:
    from nebuladb.rpc.serving.lifecycle import Server

LAST_STREAM: Final = b"last one"
"""The ping whose answer says that the peer has seen our GOAWAY."""
_ALIVE: Final = b"alive ??"
_UNFINISHED: Final = "the requests of %s that wait to come whole, or to be begun, take too much memory; try again later"
UNFINISHED_BYTES: Final = 1 << 10
"""What a request that has not come whole counts beside its own: its objects."""


class Outgoing(asyncio.Protocol):
    """A connection that speaks HTTP/2, as its calls and the server see it.

    What is sent gathers in `http2` and leaves in one write: at the end of `data_received`, or, for what handlers say
    later, once a turn of the loop (`touched`).
    """

    __slots__ = (
        "_acknowledged",
        "_active",
        "_closing",
        "_gathering",
        "_held",
        "_identity",
        "_output",
        "_paused_since",
        "_paused_taken",
        "_peer",
        "_pinged",
        "_sent",
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
        "unfinished",
        "unread",
    )

    def __init__(self, server: Server, transport: asyncio.Transport, now: float) -> None:
        self.server = server
        self.limits: ServerLimits = server.limits
        self.http2 = Connection(client=False, limits=server.limits.http2)
        self.http2.at_once = server.limits.transport_bytes
        self.calls = 0
        """In progress: their handlers have not returned."""
        self.unfinished = 0
        """Bytes of requests that have not come whole."""
        self.unread = 0
        """Bytes that wait for the peer to take them, as the server counts them."""
        self.opened = now
        self.paused = False
        """The peer doesn't read what we send."""
        self._transport = transport
        self._active = now
        self._paused_since = 0.0
        """Since when the peer has taken nothing worth mention."""
        self._paused_taken = 0
        """What it had taken then."""
        self._sent = 0
        """Bytes that were given to the transport."""
        self._closing = 0.0
        self._pinged = 0.0
        self._touched = False
        self._output = 0
        """Bytes of large answers since the last write."""
        self._acknowledged = False
        """The peer knows that we take no new calls."""
        self._peer: str | None = None
        self._identity: tuple[str | None, Mapping[str, list[bytes]]] | None = None
        self._writers: list[Exchange] = []
        """Calls that put messages since the last `flush`."""
        self._stalled: list[Exchange] = []
        """Calls that wait until the peer reads."""
        self._gathering: dict[Exchange, tuple[float, int]] | None = None
        """Calls whose request, or a message of it, has not come whole: since when, and how much was here then."""
        self._held: dict[Stream, tuple[float, int]] | None = None
        """Streams with data that waits for the peer's window: since when, and how much it was then."""
        transport.set_write_buffer_limits(high=self.limits.transport_bytes)

    # --- what goes out ---------------------------------------------------------------------------------------------

    def refuse(self, stream: Stream, answer: Fields) -> None:
        """Answer a request that becomes no call."""
        self.http2.send_headers(stream, answer, end=True)
        self.http2.reset(stream, ErrorCode.NO_ERROR)

    def sent(self, stream: Stream) -> None:
        """A call's status is out, or waits behind its data."""
        if stream.unread:
            self.http2.consumed(stream, stream.unread)  # the handler has not read it, and won't
        if stream.waiting:
            self.hold(stream)
            # What waits are bytes: the call, and its request's headers, need not.
            stream.owner = None
        elif stream.state is OPEN or stream.state is HALF_CLOSED_LOCAL:
            # RFC 9113, 8.1: the answer is complete without the rest of the request; the client may stop sending it.
            self.http2.reset(stream, ErrorCode.NO_ERROR)
        if not self._touched:
            self._touched = True
            self.server.touched(self)

    def answered(self, size: int) -> None:
        """A large answer was made. Enough of them are written before the turn's end, so that it shows whether the peer
        takes them (`paused`) before there are gigabytes of them."""
        self._output += size
        if self._output > self.limits.transport_bytes:
            self._send()

    def overfull(self, size: int = 0) -> bool:
        """Whether the server is `crowded`, and this peer leaves so much unread that no answer of `size` more may be."""
        return self.server.crowded and self.unread + size > self.limits.unread_each

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
        self._send()
        if self.http2.going_away:
            self._close_if_done()

    def _send(self) -> None:
        """Write what is in the output. A transport that was lost a moment ago refuses it, and has nobody to take it."""
        self._output = 0
        out = self.http2.take()
        if out and not self._transport.is_closing():
            self._sent += len(out)
            self._transport.write(out)
        if self.http2.news:
            self._hear()
        if self.http2.waiting or self.paused or self.unread:
            if self.http2.held_back and not self.paused:
                self._pump()
            self._count_unread()

    def _pump(self) -> None:
        """The peer's windows have room for more than one write, and the transport has room: the next follows a turn
        later."""
        for event in self.http2.pump():
            self._rare(event)
        self.touched()

    def _hear(self) -> None:
        """Of streams that were reset since too much waits: their calls are over."""
        for event in self.http2.told():
            self._rare(event)

    def _rare(self, event: object) -> None:
        """What is said of streams without a message."""
        raise NotImplementedError

    def _taken(self) -> int:
        """Bytes of what was sent that the peer, or the kernel for it, has taken."""
        return self._sent - self._transport.get_write_buffer_size()

    def _count_unread(self) -> None:
        unread = self.http2.waiting
        if self.paused:
            unread += self._transport.get_write_buffer_size()
        server = self.server
        server.unread += unread - self.unread
        server.crowded = server.unread > server.limits.unread_total
        self.unread = unread

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

    # --- requests that have not come whole -------------------------------------------------------------------------

    def gather(self, call: Exchange, size: int) -> bool:
        """So many bytes more of a request that has not come whole; False: they are too many, and the call is over."""
        server, limits = self.server, self.limits
        if not call.gathered:
            size += UNFINISHED_BYTES
            if self._gathering is None:
                self._gathering = {}
            self._gathering[call] = (self._active, size)
            server.keep(call.request)
        call.gathered += size
        self.unfinished += size
        server.unfinished += size
        if self.unfinished <= limits.unfinished_bytes and server.unfinished <= limits.unfinished_total:
            return True
        self._give_up(
            call, _UNFINISHED % ("this connection" if self.unfinished > limits.unfinished_bytes else "all clients")
        )
        return False

    def ungather(self, call: Exchange) -> None:
        """It has come, or won't come any more."""
        if call.gathered:
            server, request = self.server, call.request
            self.unfinished -= call.gathered
            server.unfinished -= call.gathered
            call.gathered = 0
            server.leave(request)
            if self._gathering is not None:
                self._gathering.pop(call, None)

    def _give_up(self, call: Exchange, why: str) -> None:
        """End a call whose request has not come whole."""
        if call.counted:  # its handler may have had messages before
            call.refuse(StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, why))
            call.lost()
        else:
            call.fail(StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, why, UNDONE))

    # --- the end ---------------------------------------------------------------------------------------------------

    def _reset(self, stream: Stream) -> None:
        # Not CANCEL: clients take that for their own doing, and their watches end instead of going on.
        self.http2.reset(stream, ErrorCode.INTERNAL_ERROR)
        if stream.owner is not None:
            stream.owner.lost()
        self.touched()

    def drop(self, stream: Stream) -> None:
        """Give up a stream whose peer doesn't take what it is sent, and free that. What the transport holds can't be
        taken back: where it takes nothing either, the whole connection goes."""
        if self.paused:
            probe("rpc: a connection that takes nothing is given up for others")
            self._transport.abort()
        else:
            self._reset(stream)

    def close(self, now: float) -> None:
        """Close the transport when what was written has left; `sweep` aborts it if that takes too long."""
        if not self._closing:
            self._closing = now
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def _close_if_done(self) -> None:
        if self._acknowledged and not self.http2.streams:
            self.http2.close()
            self._write_rest()

    def _write_rest(self) -> None:
        self._send()
        self.close(time.monotonic())

    def shutdown(self) -> None:
        """Take no new calls and let those in progress end (GOAWAY; RFC 9113, 6.8)."""
        if not self.http2.ready:
            self.stop("")
            return
        self.http2.shutdown()
        # What it sent before it saw that is still taken; its answer tells that no more of it comes.
        self.http2.ping(LAST_STREAM)
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
        if self.paused and now - self._paused_since > self._patience():
            taken = self._taken()
            if taken - self._paused_taken < limits.held_progress:
                self._transport.abort()
            else:
                self._paused_since, self._paused_taken = now, taken
        elif not http2.ready and now - self.opened > limits.http2.preface_seconds:
            http2.close(ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS came")
            self._write_rest()
        elif self.paused:
            pass  # nothing is read from it, hence no pong either: `held_seconds` is its bound
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
        if self._gathering:
            self._sweep_gathering(now, self._gathering)

    def _patience(self) -> float:
        """With who takes nothing, in seconds."""
        return self.limits.crowded_seconds if self.server.crowded else self.limits.held_seconds

    def _sweep_held(self, now: float, held: dict[Stream, tuple[float, int]]) -> None:
        patience = self._patience()
        for stream, (since, waiting) in list(held.items()):
            if not stream.waiting:
                del held[stream]
            elif self.http2.held_back and self.http2.sendable(stream):
                held[stream] = (now, stream.waiting)  # for us, not for the peer; the transport's progress is its bound
            elif now - since > patience:
                if waiting - stream.waiting >= self.limits.held_progress:
                    held[stream] = (now, stream.waiting)
                    continue
                del held[stream]
                self._reset(stream)

    def _sweep_gathering(self, now: float, gathering: dict[Exchange, tuple[float, int]]) -> None:
        limits = self.limits
        for call, (since, size) in list(gathering.items()):
            # Of one that doesn't read its answers nothing is read either: its requests can't come.
            if self.paused or (now - since > limits.held_seconds and call.gathered - size >= limits.held_progress):
                gathering[call] = (now, call.gathered)
            elif now - since > limits.held_seconds:
                probe("rpc: a request that doesn't come whole is given up")
                why = f"for {limits.held_seconds:.0f} s its rest, or room for its answer, did not come; send it again"
                self._give_up(call, why)

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

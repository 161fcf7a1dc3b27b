"""One connection of HTTP/1.1, on h11: requests one after the other, each answered whole or in chunks."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
import re
import socket
import time
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import unquote

import h11

from nebuladb.api.etcd.gateway.answer import CORS, Answer, Headers, text

if TYPE_CHECKING:
    from nebuladb.api.etcd.gateway.gateway import Gateway

LOG: Final = logging.getLogger("nebuladb.gateway")
MAX_HEAD_BYTES: Final = 32 << 10
"""Request line and headers."""
MAX_BODY_BYTES: Final = 4 << 20
"""The largest message is 2 MiB, and a third more in base64."""
REQUEST_SECONDS: Final = 60.0
"""For a request to come in whole."""
IDLE_SECONDS: Final = 300.0
"""Without a request, or to take the end of the last answer."""
HELD_SECONDS: Final = 60.0
"""That a client may leave an answer unread."""
HELD_PROGRESS: Final = 4 << 10
"""Bytes of it, after which it may for as long again."""
PROBE_SECONDS: Final = 15
"""Of silence until the kernel asks whether the client's machine is still there, and between two such probes, as Go has
it. A client that waits in a stream need not say anything: nothing else would ever tell that it is gone."""
PROBES: Final = 4
"""Without an answer, then the connection is lost."""
SMALL_READ: Final = 4 << 10
"""Bytes that are taken apart as they come. More waits for turns that all connections share: libuv may read 8 MiB of one
socket in a turn of the loop, and in chunks of a byte each that would be a minute in which nobody else is served."""
LINGER_SECONDS: Final = 2.0
"""That a client which is refused may take to read why, and to stop sending."""
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
"""In a path; what is in a query is the page's business."""


class Request(NamedTuple):
    """A whole request but for its body, which `Connection.take` gives."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]


class Connection(asyncio.Protocol):
    """Reads a request to its end, then answers it; what the client sends meanwhile waits in h11, or in the socket."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._http = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._begun = False
        """The answer's head is out."""
        self._refused = False
        self._streaming = False
        self._behind = False
        """What came waits for its turn, and nothing more is read."""
        self._held = 0
        """Bytes of the body that the gateway holds for us."""
        self.peer = ""

    # --- in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.peer = f"ipv4:{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) >= 2 else ""
        _keep_alive(transport.get_extra_info("socket"))
        if self._gateway.connected(self):
            self._wait(IDLE_SECONDS)
        elif self._gateway.turned_away(self):
            self._refuse(503, "too many connections")
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._http.receive_data(data)
        if self._behind or len(data) > SMALL_READ:
            self._line_up()
        else:
            self._advance()

    def _line_up(self) -> None:
        self._behind = True
        self._transport.pause_reading()
        self._gateway.turns.add(self)

    def proceed(self, until: float) -> bool:
        """Take of what came as much as there is time for, and read on when that is done (`Turns`)."""
        if self._advance(until):
            return True
        self._behind = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._look_behind()
        return False

    def _advance(self, until: float = math.inf) -> bool:
        """Take events until one has to wait. True: until the time was up, monotonic seconds."""
        while self._task is None and not (self._refused or self._transport.is_closing()):
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._encourage()
                    return False
                if event is h11.PAUSED:
                    break
                self._take(event)
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, "Bad Request")
                return False
            if time.monotonic() >= until:
                return True
        self._look_behind()
        return False

    def _look_behind(self) -> None:
        # While it is answered, one read more may wait here: without an end it would be the client's to fill us.
        # A little of it doesn't stop the reading: only that tells of a client that has gone while its call waits.
        if self._task is not None and len(self._http.trailing_data[0]) > MAX_HEAD_BYTES:
            if self._streaming:
                self._transport.abort()
            else:
                self._transport.pause_reading()

    def streams(self) -> None:
        """The answer is a stream, which may never end: who sends much behind its request is cut off."""
        self._streaming = True
        self._transport.resume_reading()

    def _encourage(self) -> None:
        if self._request is not None and self._http.they_are_waiting_for_100_continue:
            go_on = self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
            self._transport.write(go_on or b"")

    def _take(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self._request = event
            self._wait(REQUEST_SECONDS)
            if _BROKEN_ESCAPE.search(event.target.partition(b"?")[0]):
                self._refuse(400, "Bad Request")
                return
            announced = dict(event.headers).get(b"content-length", b"0")
            if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
                self._refuse(413, "Request Entity Too Large")
        elif isinstance(event, h11.Data):
            self._body += event.data
            self._held += len(event.data)
            room = self._gateway.hold(len(event.data))
            if len(self._body) > MAX_BODY_BYTES:
                self._refuse(413, "Request Entity Too Large")
            elif not room:
                self._refuse(503, "too many large requests")
        elif isinstance(event, h11.EndOfMessage):
            self._wait(None)
            self._task = self._loop.create_task(self._serve(self._whole()), name="gateway request")
        elif isinstance(event, h11.ConnectionClosed):
            self._transport.close()

    def _whole(self) -> Request:
        event = self._request
        assert event is not None
        target = event.target.decode("latin-1")
        if target.lower().startswith(("http://", "https://")):  # as proxies are asked (RFC 9112, 3.2.2)
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("?")
        return Request(event.method.decode("latin-1"), unquote(path), query, list(event.headers))

    def take(self) -> bytes:
        """The body of the request; it isn't kept here. It counts as held until `keep` says otherwise."""
        body, self._body = bytes(self._body), bytearray()
        return body

    def keep(self, size: int) -> None:
        """From now on so many bytes of the request are held, for as long as it is answered."""
        if not self._transport.is_closing():  # else all of them are let go, or are about to be
            self._gateway.hold(size - self._held)
            self._held = size

    async def _serve(self, request: Request) -> None:
        try:
            await self._gateway.answer(request, self)
        except ConnectionError:
            self._transport.abort()
        except asyncio.CancelledError:
            # The task's end leads to this frame: were it kept here, the request would be left to the collector, which
            # counts objects and no bytes.
            self._task = None
            raise
        except Exception:
            LOG.exception("a request of %s failed", self.peer)
            self._transport.abort()
        else:
            self._loop.call_soon(self._answered)

    def _answered(self) -> None:
        """The next request, if there may be one."""
        self._task = self._request = None
        self._streaming = self._begun = False
        self._body = bytearray()
        self._let_go()
        if self._transport.is_closing():
            return
        if self._gateway.stopping or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._wait(IDLE_SECONDS)  # for the client to take what is left
            self._transport.close()
            return
        self._http.start_next_cycle()
        self._wait(IDLE_SECONDS)
        if len(self._http.trailing_data[0]) > SMALL_READ:
            self._line_up()
            return
        self._transport.resume_reading()
        self._advance()

    def eof_received(self) -> bool:
        """A client that says no more is gone, once it has taken what was sent, or doesn't."""
        if not self._refused:
            self._wait(IDLE_SECONDS)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._wait(None)
        self._writable.set()
        self._let_go()
        self._gateway.disconnected(self)
        if self._task is not None:
            self._task.cancel()

    # --- out

    async def send(self, answer: Answer) -> None:
        """A whole answer. Raises `ConnectionError` if the client is gone, or doesn't read."""
        if self._begun:
            # What came first has gone out; there is no other way to say that it isn't all.
            self._transport.abort()
            return
        length = (b"content-length", b"%d" % len(answer.body))
        self._head(answer.status, (*answer.headers, length))
        if answer.body and self._request is not None and self._request.method != b"HEAD":
            self._write(h11.Data(data=answer.body))
        self._write(h11.EndOfMessage())
        await self._drain()

    async def chunk(self, status: int, headers: Headers, data: bytes) -> None:
        """A part of an answer, in a chunk of its own; the head goes before the first. Raises like `send`."""
        self._head(status, headers)
        self._write(h11.Data(data=data))
        await self._drain()

    async def end(self, status: int, headers: Headers) -> None:
        """No more chunks. Raises like `send`."""
        self._head(status, headers)
        self._write(h11.EndOfMessage())
        await self._drain()

    def _head(self, status: int, headers: Headers) -> None:
        if self._begun:
            return
        self._begun = True
        date = (b"date", _date(int(time.time())))
        closing = ((b"connection", b"close"),) if self._gateway.stopping else ()
        reason = HTTPStatus(status).phrase.encode()
        self._write(h11.Response(status_code=status, reason=reason, headers=[*CORS, *headers, date, *closing]))

    def _write(self, event: h11.Event) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError as error:
            raise ConnectionResetError(str(error)) from error
        if data:
            self._transport.write(data)

    async def _drain(self) -> None:
        while not self._writable.is_set():
            left = self._transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(HELD_SECONDS):
                    await self._writable.wait()
            except TimeoutError:
                if left - self._transport.get_write_buffer_size() < HELD_PROGRESS:
                    raise ConnectionResetError("the client does not read") from None

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- ends

    def finish(self) -> asyncio.Task[None] | None:
        """The server stops: the task of the request that is answered; without one the connection ends now."""
        if self._task is None:
            self._transport.close()
        return self._task

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()

    def _refuse(self, status: int, why: str) -> None:
        """Answer what is no request, and end the connection: not at once, since unread bytes would make of the end a
        reset, which takes the answer away from its reader."""
        self._refused = True
        self._body.clear()
        self._let_go()
        answer = text(status, why, (b"connection", b"close"))
        try:
            self._head(answer.status, (*answer.headers, (b"content-length", b"%d" % len(answer.body))))
            self._write(h11.Data(data=answer.body))
        except ConnectionError:
            self._transport.abort()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._wait(LINGER_SECONDS)

    def _let_go(self) -> None:
        self._gateway.hold(-self._held)
        self._held = 0

    def _wait(self, seconds: float | None) -> None:
        """Close the connection unless something comes in so many seconds; None: as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._transport.abort) if seconds is not None else None


def _keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel ask after a client that says nothing. Where a system lacks an option its own intervals hold."""
    if sock is None:
        return
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the latter: macOS
    options = (idle, PROBE_SECONDS), (getattr(socket, "TCP_KEEPINTVL", None), PROBE_SECONDS)
    with suppress(OSError):  # no socket of TCP, or closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (*options, (getattr(socket, "TCP_KEEPCNT", None), PROBES)):
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """As HTTP writes it; answers of one second share it."""
    return email.utils.formatdate(second, usegmt=True).encode()

"""The way to one server: at most one connection for new calls, made again when it is lost, with back-off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, Protocol

import grpc

from nebuladb.env import probe
from nebuladb.rpc.channel.connection import Connection
from nebuladb.rpc.channel.rpc import Rpc
from nebuladb.rpc.channel.settings import Settings
from nebuladb.rpc.channel.target import Endpoint
from nebuladb.rpc.http2 import Limits
from nebuladb.rpc.tls import ChannelCredentials

GROWTH: Final = 1.6
JITTER: Final = 0.2
"""Back-off of gRPC's connection-backoff.md."""
LONGEST_KEEPALIVE: Final = 3600.0

State = grpc.ChannelConnectivity


class Observer(Protocol):
    """Who has the subchannel (`Dispatcher`)."""

    def changed(self, subchannel: Subchannel) -> None:
        """Its `state` is another one."""
        ...

    def again(self, rpc: Rpc) -> None:
        """A call that has to begin elsewhere."""
        ...


class Subchannel:
    """Connects to the first of its endpoints that answers, when told to `connect`.

    States as in gRPC's connectivity-semantics-and-api.md: IDLE → CONNECTING → READY, or TRANSIENT_FAILURE and after
    the back-off CONNECTING again; a connection that ends leaves it IDLE.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        limits: Limits,
        observer: Observer,
        resolve: Callable[[], Awaitable[tuple[Endpoint, ...]]],
        security: tuple[ChannelCredentials, str] | None,
    ) -> None:
        """`security`: credentials, and the name that the server must bear; None for plain text."""
        self.state = State.IDLE
        self.connection: Connection | None = None
        """The one for new calls, while READY."""
        self.draining: dict[Connection, None] = {}
        """Those whose server goes away, until their calls are over."""
        self.failure = ""
        """Why the last attempt failed."""
        self._loop = loop
        self._settings = settings
        self._limits = limits
        self._observer = observer
        self._resolve = resolve
        self._security = security
        self._keepalive = settings.keepalive_time
        self._rng = random.Random()
        self._failures = 0
        self._attempt: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._settling: tuple[Connection, asyncio.Future[None]] | None = None
        """The connection that waits for the server's preface."""

    # --- for the observer ------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin to, if IDLE."""
        if self.state is State.IDLE:
            self._retry = None
            self._attempt = self._loop.create_task(self._connect())
            self._become(State.CONNECTING)

    def connections(self) -> list[Connection]:
        """All that have, or may have, calls."""
        return [*([self.connection] if self.connection is not None else ()), *self.draining]

    def retire(self) -> None:
        """It is wanted no more: calls that run go on, nothing new begins."""
        self._stop()
        self.state = State.SHUTDOWN
        if self.connection is not None:
            self.connection.retire()

    def close(self) -> list[Connection]:
        """End everything at once; the connections whose transports are closing."""
        self._stop()
        connections = self.connections()
        if self._settling is not None:
            connections.append(self._settling[0])
        self.state = State.SHUTDOWN
        for connection in connections:
            connection.close()
        return connections

    def _stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._attempt is not None:
            self._attempt.cancel()

    # --- connecting ------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """One attempt at every endpoint, each with its deadline."""
        began = monotonic()
        why = "the name has no address"
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                endpoints = await self._resolve()
        except (OSError, TimeoutError) as error:
            endpoints, why = (), f"the name can't be resolved: {error or 'no answer in time'}"
        for endpoint in endpoints:
            try:
                async with asyncio.timeout(self._settings.connect_timeout):
                    await self._open(endpoint)
                return
            except TimeoutError:
                if self._has_settled():  # both were found at once, by a loop that was busy for as long
                    probe("rpc: connected as the time was over")
                    return
                why = f"{endpoint}: no HTTP/2 preface within {self._settings.connect_timeout:g} s"
            except OSError as error:  # ssl.SSLError is one; of a handshake that the server ends uvloop's says nothing
                why = f"{endpoint}: {error.strerror or str(error) or 'the server ended the connection'}"
            except RuntimeError as error:  # there was no thread to look at certificates in
                why = f"{endpoint}: {error}"
            finally:
                settled, settling, self._settling = self._has_settled(), self._settling, None
                if settling is not None and not settled:
                    settling[0].close()
        self._failed(why, began)

    def _has_settled(self) -> bool:
        """Whether the preface of the connection that waits for it has come."""
        future = self._settling[1] if self._settling is not None else None
        return future is not None and future.done() and not future.cancelled() and future.exception() is None

    async def _open(self, endpoint: Endpoint) -> None:
        future: asyncio.Future[None] = self._loop.create_future()

        def protocol() -> Connection:
            connection = Connection(self._loop, self._settings, self._limits, self, str(endpoint), self._keepalive)
            self._settling = connection, future
            return connection

        tls: dict[str, Any] = {}
        if self._security is not None:
            credentials, name = self._security
            await asyncio.to_thread(credentials.refresh)
            tls = {"ssl": credentials.context, "server_hostname": name}
        if endpoint.path:
            transport, _ = await self._loop.create_unix_connection(protocol, endpoint.path, **tls)
        else:
            transport, _ = await self._loop.create_connection(protocol, endpoint.host, endpoint.port, **tls)
        if tls:
            chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
            if chosen != "h2":
                transport.abort()
                raise ConnectionError(f"the server speaks no HTTP/2 over TLS (ALPN chose {chosen})")
        await future

    def _failed(self, why: str, began: float) -> None:
        self.failure = why
        pause = min(self._settings.initial_backoff * GROWTH**self._failures, self._settings.max_backoff)
        self._failures = min(self._failures + 1, 64)
        pause *= 1 + self._rng.uniform(-JITTER, JITTER)
        self._retry = self._loop.call_later(max(0.0, began + pause - monotonic()), self._try_again)
        self._become(State.TRANSIENT_FAILURE)

    def _try_again(self) -> None:
        if self.state is State.TRANSIENT_FAILURE:
            self.state = State.IDLE
            self.connect()

    def _become(self, state: State) -> None:
        if self.state is not State.SHUTDOWN and self.state is not state:
            self.state = state
            self._observer.changed(self)

    # --- from connections ------------------------------------------------------------------------------------------

    def settled(self, connection: Connection) -> None:
        """The server's preface came."""
        if self._settling is None or self._settling[0] is not connection or self.state is State.SHUTDOWN:
            connection.close()
            return
        future = self._settling[1]
        if not future.done():
            future.set_result(None)
        self._failures = 0
        self.failure = ""
        self.connection = connection
        self._become(State.READY)

    def retired(self, connection: Connection) -> None:
        """No new calls there."""
        if self.connection is connection:
            self.connection = None
            self.draining[connection] = None
            self._become(State.IDLE)

    def lost(self, connection: Connection, why: str) -> None:
        """It is over."""
        self.draining.pop(connection, None)
        if self._settling is not None and self._settling[0] is connection:
            future = self._settling[1]
            if not future.done():
                future.set_exception(ConnectionError(why))
                future.exception()  # nobody may be waiting yet, or any more
        if self.connection is connection:
            self.connection = None
            self._become(State.IDLE)

    def again(self, rpc: Rpc) -> None:
        """A call that has to begin elsewhere."""
        self._observer.again(rpc)

    def throttled(self) -> None:
        """The server took our pings for too many: half as often from now on (gRPC's keepalive.md)."""
        probe("rpc: keepalive throttled")
        self._keepalive = min(2 * self._keepalive, LONGEST_KEEPALIVE)

"""`Server`: ports, handlers, life."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from nebuladb.env import probe
from nebuladb.rpc.serving.carrier import Carriers
from nebuladb.rpc.serving.connection import ServerConnection
from nebuladb.rpc.serving.limits import AMPLE_DESCRIPTORS, ServerLimits
from nebuladb.rpc.serving.outgoing import Outgoing
from nebuladb.rpc.serving.ports import bind
from nebuladb.rpc.serving.request import Request
from nebuladb.rpc.serving.routes import Handler, Routes
from nebuladb.rpc.serving.sniffer import Sniffer
from nebuladb.rpc.serving.turns import Turns
from nebuladb.rpc.tls import ServerCredentials

LOG: Final = logging.getLogger("nebuladb.rpc")
BACKLOG: Final = 1024
"""Connections that the kernel holds until we accept them."""
REFRESH_SECONDS: Final = 10.0
"""Between two looks at the files of certificates."""
SAY_SECONDS: Final = 60.0
"""Between two lines about connections that are refused."""
_STOPPING: Final = "the server is stopping"

Http1 = Callable[[], asyncio.Protocol]


class Server(grpc.aio.Server):
    """A gRPC server with the surface of ``grpc.aio.Server``. Make it with `nebuladb.rpc.server`, in its loop.

    One loop's, and not thread-safe.
    """

    def __init__(
        self,
        *,
        handlers: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        limits: ServerLimits,
        reuse_port: bool,
        thread_pool: Executor | None,
        http1: Http1 | None,
    ) -> None:
        self.limits = limits
        self.max_calls = limits.calls
        self.thread_pool = thread_pool
        self.http1 = http1
        self.routes = Routes(interceptors)
        self.routes.add_generic(handlers)
        self.calls = 0
        """In progress, of all connections."""
        self.unfinished = 0
        """Bytes of requests that have not come whole, of all connections."""
        self.headers = 0
        """What headers of calls take that are in progress or have not come whole, bytes, likewise."""
        self.unread = 0
        """Bytes of answers that wait for clients to take them, likewise."""
        self.crowded = False
        """They are more than may be (`ServerLimits.unread_total`)."""
        self.stopping = False
        self.loop: asyncio.AbstractEventLoop
        self.carriers: Carriers
        self.turns = Turns()
        self._reuse_port = reuse_port
        self._sockets: list[tuple[socket.socket, ServerCredentials | None]] = []
        self._listeners: list[asyncio.Server] = []
        # A dict and not a set: sweeps go through it in order.
        self._connections: dict[Sniffer | ServerConnection, str] = {}
        self._addresses: dict[str, int] = {}
        self._descriptors = sys.maxsize
        """Numbers of descriptors that connections may have are below. The system gives the lowest that is free, so a
        number says how many there are."""
        self._said = float("-inf")
        """When it was said last that there are too many, monotonic seconds."""
        self._touched: list[Outgoing] = []
        self._held = False
        """Whoever answers calls now says when that is to be written."""
        self._timer: asyncio.TimerHandle | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._started = False
        self._stopped: asyncio.Event
        self._deadline: float | None = None

    # --- before the start ------------------------------------------------------------------------------------------

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Register handlers; the first that knows a method has it."""
        self.routes.add_generic(list(generic_rpc_handlers))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Register a service's methods by name; they come before generic handlers."""
        self.routes.add_registered(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """Listen at HOST:PORT (port 0: any free one) in plain text. Returns the port. Raises `RuntimeError`."""
        return self._bind(address, None)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """The same with TLS.

        Raises:
            TypeError: credentials that `nebuladb.rpc.ssl_server_credentials` didn't make; grpc's own are opaque.
        """
        if not isinstance(server_credentials, ServerCredentials):
            raise TypeError("make the credentials with nebuladb.rpc.ssl_server_credentials; grpc's own are opaque")
        return self._bind(address, server_credentials)

    def _bind(self, address: str, credentials: ServerCredentials | None) -> int:
        if self._started:
            raise RuntimeError("ports are added before the start")
        sockets = bind(address, reuse_port=self._reuse_port, backlog=BACKLOG)
        self._sockets += [(one, credentials) for one in sockets]
        return int(sockets[0].getsockname()[1])

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Accept connections. Once."""
        if self._started:
            raise grpc.aio.UsageError("the server has been started")
        self._started = True
        self._descriptors = _descriptors(self.limits.descriptors_left)
        self.loop = asyncio.get_running_loop()
        self.carriers = Carriers(self.loop)
        self._stopped = asyncio.Event()
        for listening, credentials in self._sockets:
            secured: dict[str, Any] = {}
            if credentials is not None:
                secured = {
                    "ssl": credentials.listening(http1=self.http1 is not None),
                    "ssl_handshake_timeout": self.limits.handshake_seconds,
                }
            listener = await self.loop.create_server(lambda: Sniffer(self), sock=listening, backlog=BACKLOG, **secured)
            self._listeners.append(listener)
        self._timer = self.loop.call_later(self.limits.sweep_seconds, self._sweep)
        changing = [credentials for _, credentials in self._sockets if credentials is not None]
        if changing:
            self._refresher = self.loop.create_task(_refresh(changing), name="TLS files")

    async def stop(self, grace: float | None) -> None:
        """Take no new calls; give those in progress `grace` seconds, then end them with UNAVAILABLE.

        A second call can make the grace shorter, not longer. Returns when all handlers have returned.
        """
        if not self._started:
            self._started = True
            for listening, _ in self._sockets:
                listening.close()
            self._stopped = asyncio.Event()
            self._stopped.set()
            return
        if self._stopped.is_set():
            return
        deadline = time.monotonic() + (grace or 0.0)
        if not self.stopping:
            self.stopping = True
            for listener in self._listeners:
                listener.close()
            if self._refresher is not None:
                self._refresher.cancel()
            for connection in list(self._connections):
                if grace:
                    connection.shutdown()
        if self._deadline is None or deadline < self._deadline:
            self._deadline = deadline
            self.loop.call_later(max(0.0, deadline - time.monotonic()), self._cut)
        self.look()
        await self._stopped.wait()

    def _cut(self) -> None:
        """The grace is over."""
        for connection in list(self._connections):
            connection.stop(_STOPPING)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until the server is stopped. True if `timeout` seconds passed before."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    # --- what connections tell it ----------------------------------------------------------------------------------

    def connected(self, connection: Sniffer, descriptor: int) -> bool:
        """Whether one more may be."""
        if self.stopping or len(self._connections) >= self.limits.connections:
            return False
        if descriptor >= self._descriptors:
            probe("connection refused for want of descriptors")
            if (now := time.monotonic()) - self._said >= SAY_SECONDS:
                self._said = now
                LOG.warning(
                    "connections are refused: %d descriptors are in use, and the rest is the node's own; raise the "
                    "limit of open files (ulimit -n, LimitNOFILE)",
                    self._descriptors,
                )
            return False
        most = self.limits.connections_per_address
        if most:
            count = self._addresses.get(connection.address, 0)
            if count >= most:
                return False
            self._addresses[connection.address] = count + 1
        self._connections[connection] = connection.address
        return True

    def became(self, sniffer: Sniffer, connection: ServerConnection) -> None:
        """It speaks HTTP/2."""
        self._connections[connection] = self._connections.pop(sniffer)

    def disconnected(self, connection: Sniffer | ServerConnection) -> None:
        """It is gone, or somebody else's."""
        address = self._connections.pop(connection, None)
        if address is None:
            return
        count = self._addresses.get(address, 0) - 1
        if count > 0:
            self._addresses[address] = count
        else:
            self._addresses.pop(address, None)
        self.look()

    def look(self) -> None:
        """See whether all is over, while it stops: a connection is gone, or a handler has returned."""
        if self.stopping and not self._connections and not self.calls and not self._stopped.is_set():
            if self._timer is not None:
                self._timer.cancel()
            self.carriers.close()
            self._stopped.set()

    def keep(self, request: Request) -> None:
        """A call more holds the headers of `request`: until `leave`."""
        request.holders += 1
        if request.holders == 1:
            self.headers += request.cost

    def leave(self, request: Request) -> None:
        request.holders -= 1
        if not request.holders:
            self.headers -= request.cost

    def touched(self, connection: Outgoing) -> None:
        """It has something to write: once, when this turn's callbacks have run."""
        if not self._touched and not self._held:
            self.loop.call_soon(self.flush)
        self._touched.append(connection)

    def hold(self) -> None:
        """Many calls are about to be answered in one go: what comes of it is written by `flush`, which must follow."""
        self._held = True

    def flush(self) -> None:
        """Write what connections have to write, now and not a turn of the loop later."""
        self._held = False
        touched, self._touched = self._touched, []
        for connection in touched:
            try:
                connection.flush()
            except Exception:
                # Ours, whatever it is; it must not cost the others their answers.
                LOG.exception("the connection of %s failed", connection.peer())
                connection.abort()

    def _sweep(self) -> None:
        self._timer = self.loop.call_later(self.limits.sweep_seconds, self._sweep)
        self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Look at the times of all connections; `now` is monotonic seconds."""
        for connection in list(self._connections):
            connection.sweep(now)


def _descriptors(left: int) -> int:
    """How many descriptors may be in use before the last `left` of the process's."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or not left:
        return sys.maxsize
    return most - min(left, left * most // AMPLE_DESCRIPTORS)


async def _refresh(credentials: Sequence[ServerCredentials]) -> None:
    """Look at the files for ever, off the loop."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        for one in credentials:
            with suppress(RuntimeError):  # there is no thread to be had now
                await asyncio.to_thread(one.refresh)

"""The admin port: /livez, /readyz, /status, /metrics and the dashboard, over HTTP/1.1, in the node's own event loop.

For people, probes and Prometheus on a trusted network. It reads and never writes, except that /readyz may put a key of
the node's own. Whatever comes in here, the database goes on: connections, the time that each may take and the readiness
checks in flight are bounded, and no page keeps the loop for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final, Protocol

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from nebuladb.addresses import split_address
from nebuladb.env import probe
from nebuladb.errors import Unavailable
from nebuladb.server.dashboard import PAGE
from nebuladb.server.metrics import CONTENT_TYPE, Metrics

READY_SECONDS: Final = 5.0
"""A readiness check that takes longer says "not ready"."""
MAX_CONNECTIONS: Final = 64
"""A page of metrics may be a MiB, and each may hold one that its client doesn't read."""
IDLE_SECONDS: Final = 30
"""From the connection, or from the end of an answer, to the end of the next one."""
CLOSE_SECONDS: Final = 1
BACKLOG: Final = 128


class AdminView(Protocol):
    """What the admin port shows of a node."""

    def livez(self) -> tuple[bool, str]:
        """Whether the process should go on living, and why not. Never waits."""
        ...

    async def readyz(self) -> tuple[bool, str]:
        """Whether a put and a linearizable get through this node would succeed, on `default` and `etcd`, but for
        what is refused for want of space or by a declared alarm; or why not."""
        ...

    def status(self) -> dict[str, Any]:
        """The node as JSON: name, node_id, cluster_id, pid, version, addresses, groups, alarms."""
        ...


class AdminApp:
    """The pages, as an ASGI application."""

    def __init__(self, view: AdminView, metrics: Metrics) -> None:
        self._view = view
        self._metrics = metrics
        self._checking: asyncio.Task[tuple[bool, str]] | None = None
        self.asgi: Final = Starlette(
            routes=[
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/status", self._status),
                Route("/metrics", self._metrics_page),
                Route("/", self._dashboard),
            ],
            exception_handlers={404: _not_found, 500: _failed},
        )

    async def _livez(self, request: Request) -> Response:
        return _verdict(*self._view.livez())

    async def _readyz(self, request: Request) -> Response:
        # Any number of probes share one check: a poller that doesn't wait must not pile up puts.
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._checked)
        return _verdict(*await asyncio.shield(self._checking))

    async def _check(self) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await self._view.readyz()
        except TimeoutError:
            return False, f"no answer within {READY_SECONDS:g} s"

    def _checked(self, task: asyncio.Task[tuple[bool, str]]) -> None:
        self._checking = None
        if not task.cancelled():
            task.exception()  # retrieved: every waiter raised it already

    async def _status(self, request: Request) -> Response:
        return JSONResponse(self._view.status())

    async def _metrics_page(self, request: Request) -> Response:
        # With 1,000 shards the whole takes 75 ms: the loop goes round after each family.
        parts = []
        for part in self._metrics.parts():
            parts.append(part)
            await asyncio.sleep(0)
        return Response(b"".join(parts), media_type=CONTENT_TYPE)

    async def _dashboard(self, request: Request) -> Response:
        return HTMLResponse(PAGE)


def _verdict(good: bool, text: str) -> Response:
    return PlainTextResponse(f"{text or ('ok' if good else 'no')}\n", status_code=200 if good else 503)


async def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse("no such page; there are / /livez /readyz /status /metrics\n", status_code=404)


async def _failed(request: Request, error: Exception) -> Response:
    structlog.get_logger("admin").error("an admin page failed", path=request.url.path, exc_info=error)
    return PlainTextResponse("this page failed; the log says why\n", status_code=500)


class _BoundedProtocol(H11Protocol):
    """uvicorn's connection, for a bounded time: uvicorn's own clock stops at every byte that comes, and while a client
    doesn't read. One connection too many ends the one that has answered nothing for the longest: else whoever holds
    them all would keep out the probe on whose word the node is killed."""

    since = 0.0
    """The loop's time of the connection, or of the last answer's end."""
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MAX_CONNECTIONS:
            probe("admin connection too many")
            oldest = min(self.connections, key=lambda connection: getattr(connection, "since", 0.0))
            self.connections.discard(oldest)
            oldest.transport.abort()
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._begin()
        super().on_response_complete()

    def _begin(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self.since = self.loop.time()
        self._end = self.loop.call_later(IDLE_SECONDS, self.transport.abort)


class _Embedded(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone: they belong to `lifecycle`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """The admin port of one node."""

    def __init__(self, app: AdminApp, address: str) -> None:
        self._address = address
        self._server = _Embedded(
            uvicorn.Config(
                app.asgi,
                http=_BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def bind(self) -> None:
        """Take the port. Raises `Unavailable` that names the address if somebody else has it."""
        self._socket = bind(self._address, "admin-addr")

    async def start(self) -> None:
        """Serve in the background, bound or not yet."""
        if self._socket is None:
            self.bind()
        assert self._socket is not None
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="admin")

    async def stop(self) -> None:
        """Stop listening and end what is in flight within a second or so. Idempotent."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        if self._socket is not None:
            self._socket.close()


def bind(address: str, key: str, *, v6_only: bool = False) -> socket.socket:
    """A listening TCP socket at `address`. Raises `Unavailable` that names the setting `key`."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Unavailable(f"{key}: can't listen at {address}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if v6_only and family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(f"{key}: can't listen at {address}: {error.strerror}") from error
    listener.settimeout(0)
    return listener

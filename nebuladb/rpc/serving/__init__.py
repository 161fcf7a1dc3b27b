"""A gRPC server on asyncio, with ``grpc.aio``'s surface, on the sans-IO connection of `nebuladb.rpc.http2`.

Generated code and library servicers (health, reflection) run on it unchanged. What a caller should know beyond
``grpc.aio``'s documentation:

- A unary handler that returns without waiting runs in the callback that read its request, and is answered in the same
  write. It costs no task, and must not block.
- A plain function runs in a thread.
- A handler whose client is gone, or whose deadline passed, is cancelled: `CancelledError` at its ``await``.
- A handler's exception is answered UNKNOWN and logged; its text stays here. ``context.abort`` says what the client
  shall know.
- Writes of a stream wait while its client doesn't read; requests that a handler doesn't read keep their window.

Every bound has a name in `ServerLimits`. A peer that breaks the protocol or a bound loses its call or its connection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc
import grpc.aio

from nebuladb.rpc.serving.lifecycle import Http1, Server
from nebuladb.rpc.serving.limits import ServerLimits

__all__ = ["Server", "ServerLimits", "server"]


def server(
    migration_thread_pool: Executor | None = None,
    handlers: Sequence[grpc.GenericRpcHandler] | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] | None = None,
    options: Iterable[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    *,
    limits: ServerLimits | None = None,
    http1: Http1 | None = None,
) -> Server:
    """A server, with the parameters of ``grpc.aio.server``.

    Of `options` those count that `ServerLimits` knows (message length, metadata size, streams, keepalive, idle time)
    and ``grpc.so_reuseport``, which is off by default. `http1` makes the protocol that connections of HTTP/1.1 are
    handed to, with the bytes read so far; without it they are answered 505 and closed.
    """
    given = dict(options or ())
    bounds = (limits or ServerLimits()).with_options(given.items())
    if maximum_concurrent_rpcs is not None:
        bounds = dataclasses.replace(bounds, calls=maximum_concurrent_rpcs)
    return Server(
        handlers=tuple(handlers or ()),
        interceptors=tuple(interceptors or ()),
        limits=bounds,
        reuse_port=bool(given.get("grpc.so_reuseport", 0)),
        thread_pool=migration_thread_pool,
        http1=http1,
    )

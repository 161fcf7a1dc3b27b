"""Every bound on what peers can make a server hold or do, above those of one HTTP/2 connection."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from nebuladb.rpc.http2.limits import Limits

AMPLE_DESCRIPTORS: Final = 2_560
"""Of a process, from which on `ServerLimits.descriptors_left` are left whole."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The bounds of a server. Who goes over one loses a call or a connection; nobody else notices.

    `http2` has those of each connection: streams, windows, headers, floods, time to preface, idle time.
    """

    http2: Limits = field(default_factory=lambda: Limits(waiting_bytes=512 << 20))
    connections: int = 20_000
    """At once; further ones are closed as they come. Each costs memory and a file descriptor."""
    connections_per_address: int = 0
    """From one source address at once; 0: any number, since a proxy or a NAT is one address."""
    descriptors_left: int = 0
    """Of the file descriptors that the process may have, so many are for everything else: a connection whose own would
    be one of them is closed as it comes. Of fewer than `AMPLE_DESCRIPTORS` it is a part in proportion. 0: nothing."""
    calls: int = 10_000
    """In progress at once, until their handlers have returned (a client that resets its calls frees nothing by it);
    further ones are answered RESOURCE_EXHAUSTED. `maximum_concurrent_rpcs` overrides it."""
    unfinished_bytes: int = 64 << 20
    """Of one connection's unary requests, and messages of its streams, that have not come whole, a KiB for each
    included, however many streams they are on: a burst of 20,000 calls whose bodies follow their headers is 30 MiB
    for a moment, forty puts of the largest values are 60. The former count as no calls; one that goes over it is
    answered RESOURCE_EXHAUSTED."""
    unfinished_total: int = 128 << 20
    """Of such bytes of all connections, however many somebody opens: a machine of 1 GiB bears it on top."""
    headers_total: int = 64 << 20
    """That headers of calls of all connections take in memory which are in progress or have not come whole, objects
    included; the same list, of a connection, counts once. Past it requests whose headers take more than `headers_each`
    are answered RESOURCE_EXHAUSTED: 22,000 streams with 125 fields of five octets would be 850 MB."""
    headers_each: int = 4 << 10
    """Some ten fields of the usual length."""
    message_bytes: int = 4 << 20
    """Of a request message, also when inflated."""
    response_bytes: int = 64 << 20
    """Of a response message; a larger one is answered RESOURCE_EXHAUSTED."""
    stream_bytes: int = 64 << 10
    """Response bytes of one stream that may wait for the peer's window before its handler's writes wait."""
    turn_bytes: int = 16 << 10
    """Response bytes that a stream's handler may write before others get their turn: with a thousand streams at it a
    turn is a thousand times as long, and whoever calls waits for its end."""
    transport_bytes: int = 1 << 20
    """Bytes that a peer has let us send and doesn't read. Past it nothing more is read from it, and writes wait."""
    ahead_bytes: int = 64 << 20
    """Of answers that wait for one peer's windows, with which its further unary requests wait, too, and count as
    `unfinished_bytes`: nothing is done whose answer has no room. Calls that were in progress add theirs."""
    unread_total: int = 256 << 20
    """Of answers of all connections that wait for clients to take them. Past it requests of a connection that has more
    than `unread_each` of them wait, answers of its calls in progress are replaced by UNAVAILABLE, and who takes nothing
    has `crowded_seconds`."""
    unread_each: int = 64 << 10
    handshake_seconds: float = 10.0
    """For TLS, from accept on."""
    held_seconds: float = 60.0
    """A response that waits for the peer's window, or a transport, of which nothing is taken for longer is given up:
    the stream is reset (INTERNAL_ERROR), the transport aborted. A request that doesn't come whole is answered
    RESOURCE_EXHAUSTED."""
    crowded_seconds: float = 2.0
    """Instead of `held_seconds`, for responses and transports, while `unread_total` is exceeded."""
    held_progress: int = 4 << 10
    """Bytes that must leave, or come, within them: one byte a minute is a way of holding a response, or a request, for
    ever, too."""
    keepalive_seconds: float = 60.0
    """Of silence until a peer is pinged."""
    keepalive_timeout: float = 20.0
    """Seconds until a peer that doesn't answer a ping is given up."""
    linger_seconds: float = 5.0
    """That a closed connection may take to read its last bytes."""
    sweep_seconds: float = 1.0
    """Between two looks at the times above: they hold to within this."""

    def with_options(self, options: Iterable[tuple[str, Any]]) -> ServerLimits:
        """These limits, with what ``grpc.aio.server``'s `options` say of them, and ``nebula.descriptors_left``. Unknown
        ones say nothing, as there."""
        limits = self
        for name, value in options:
            known = _OPTIONS.get(name)
            if known is not None and value is not None and int(value) >= 0:
                limits = dataclasses.replace(limits, **{known[0]: int(value) * known[1]})
            if name == _STREAMS and value is not None and int(value) > 0:
                limits = dataclasses.replace(limits, http2=limits.http2.with_streams(int(value)))
            inner = _HTTP2_OPTIONS.get(name)
            if inner is not None and value is not None and int(value) > 0:
                http2 = dataclasses.replace(limits.http2, **{inner[0]: int(value) * inner[1]})
                limits = dataclasses.replace(limits, http2=http2)
        return limits


_STREAMS: Final = "grpc.max_concurrent_streams"
_OPTIONS: dict[str, tuple[str, Any]] = {
    "grpc.max_receive_message_length": ("message_bytes", 1),
    "grpc.max_send_message_length": ("response_bytes", 1),
    "grpc.keepalive_time_ms": ("keepalive_seconds", 1e-3),
    "nebula.descriptors_left": ("descriptors_left", 1),
    "grpc.keepalive_timeout_ms": ("keepalive_timeout", 1e-3),
}
_HTTP2_OPTIONS: dict[str, tuple[str, Any]] = {
    "grpc.max_metadata_size": ("header_list", 1),
    "grpc.max_connection_idle_ms": ("idle_seconds", 1e-3),
}

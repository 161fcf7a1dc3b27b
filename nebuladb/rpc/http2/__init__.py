"""HTTP/2 (RFC 9113) as gRPC needs it, sans I/O: bytes in, events out, bytes to send.

A `Connection` is one end, client's or server's. It knows no gRPC, no socket and no clock, and is not safe for threads.

What its owner owes it:

1. All octets go through `receive`, in order, with a monotonic clock, and its events are handled in order. After
   `ConnectionEnded`, or `closed`, it sends what `take` has left and closes the transport.
2. After anything else it calls `take` and sends the octets, soon and in order. While the transport doesn't take them it
   stops reading: what it doesn't read can't make the connection write. If it set `at_once`, it calls `pump`, handles
   the events and takes again while octets are `held_back` and the transport takes them. While there is `news` it
   handles what it is `told`: of streams that its own doing has ended, or made room for.
3. It says `consumed` of each `DataReceived`, or the peer stops at the end of its window. (The data of `HeadersReceived`
   counts as consumed already.)
4. It heeds `stream.waiting`: a producer that goes on while octets wait runs into `Limits.waiting_bytes` and loses the
   stream. `Writable` says that all of it has left.
5. A server that has answered before the request ended resets the stream (NO_ERROR, section 8.1): until then it is open
   and counts as one of the peer's.
6. It keeps the time: `Limits.preface_seconds` until `ready`, `idle_seconds`, its own keepalive with `ping`.

What it raises: `LocalProtocolError` for what the owner must not do (nothing has changed then), and nothing for what the
peer does: that ends in `StreamReset` (RST_STREAM is in the output) or `ConnectionEnded` (GOAWAY is). Sending on a
stream that was reset, or on a closed connection, is no error and does nothing: the owner can't have known.

What it won't do: push, priorities, CONNECT, HTTP/1.1 upgrade.
"""

from nebuladb.rpc.http2.connection import Connection
from nebuladb.rpc.http2.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError, StreamLimit
from nebuladb.rpc.http2.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    GoingAway,
    HeadersReceived,
    PingAcknowledged,
    ResponseReceived,
    StreamReset,
    StreamsAllowed,
    Writable,
)
from nebuladb.rpc.http2.headers import Fields, HeaderBlock
from nebuladb.rpc.http2.limits import Limits, Rate
from nebuladb.rpc.http2.stream import State, Stream

__all__ = [
    "Connection",
    "ConnectionEnded",
    "DataReceived",
    "ErrorCode",
    "Event",
    "Fields",
    "GoingAway",
    "HeaderBlock",
    "HeadersReceived",
    "Limits",
    "LocalProtocolError",
    "PingAcknowledged",
    "ProtocolError",
    "Rate",
    "RemoteProtocolError",
    "ResponseReceived",
    "State",
    "Stream",
    "StreamLimit",
    "StreamReset",
    "StreamsAllowed",
    "Writable",
]

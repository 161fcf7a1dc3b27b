"""What a `Connection` tells its owner. Each event is made once, read once and dropped."""

from __future__ import annotations

from dataclasses import dataclass

from nebuladb.rpc.http2.errors import ErrorCode
from nebuladb.rpc.http2.headers import HeaderBlock
from nebuladb.rpc.http2.stream import Stream


@dataclass(slots=True)
class HeadersReceived:
    """A request (server) or a response's first or last headers (client).

    `data`: all of its body, when the peer sent it right behind and ended the stream (the shape of every unary request);
    no `DataReceived` follows then, and `ended` is true. `ended` without `data`: headers that end the stream (trailers,
    trailers-only responses, requests without a body).
    """

    stream: Stream
    headers: HeaderBlock
    data: bytes | None
    ended: bool


@dataclass(slots=True)
class ResponseReceived:
    """A client's: the whole answer to a unary request, in place of HeadersReceived, DataReceived and HeadersReceived.

    It comes if `Connection.whole_responses` is set and all of it stood in one `receive`, in the shape that repeats;
    else the three do. The data counts as consumed, and the stream is over.
    """

    stream: Stream
    headers: HeaderBlock
    data: bytes
    trailers: HeaderBlock


@dataclass(slots=True)
class DataReceived:
    """A part of the body, without padding. The owner says `Connection.consumed` of its length when it has taken it."""

    stream: Stream
    data: bytes
    ended: bool


@dataclass(slots=True)
class StreamReset:
    """The stream is over: the peer reset it, broke a rule of the stream (we reset it then), or goes away before it
    looked at it (`unprocessed`: a request that is safe to send again)."""

    stream: Stream
    code: ErrorCode
    unprocessed: bool = False


@dataclass(slots=True)
class Writable:
    """What waited for the peer's window has left: the stream's buffer is empty again, after it was not."""

    stream: Stream


@dataclass(slots=True)
class StreamsAllowed:
    """The client may open streams again, after `Connection.open` was refused for their number."""


@dataclass(slots=True)
class PingAcknowledged:
    """The peer answers a ping of ours."""

    payload: bytes


@dataclass(slots=True)
class GoingAway:
    """The peer wants no new streams. Streams above `last` were not looked at, and got a `StreamReset` of their own."""

    code: ErrorCode
    last: int
    debug: bytes


@dataclass(slots=True)
class ConnectionEnded:
    """The connection is over: the peer broke the protocol or a bound (`code`, `message`), and GOAWAY is in the output.

    Every open stream is over with it, without events of their own. After `take` the owner closes the transport.
    """

    code: ErrorCode
    message: str


Event = (
    HeadersReceived
    | ResponseReceived
    | DataReceived
    | StreamReset
    | Writable
    | StreamsAllowed
    | PingAcknowledged
    | GoingAway
    | ConnectionEnded
)

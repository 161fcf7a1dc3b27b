"""What the gateway says by HTTP: statuses, headers, bodies of errors (grpc-gateway's, as etcd 3.5 has it)."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import quote

import grpc

JSON: Final = (b"content-type", b"application/json")
TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
FROM_GRPC: Final = (b"grpc-metadata-content-type", b"application/grpc")
CORS: Final = (
    (b"access-control-allow-headers", b"accept, content-type, authorization"),
    (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE"),
    (b"access-control-allow-origin", b"*"),
)
"""On every answer, as etcd sends them where it isn't told which origins may call."""

_STATUSES: Final = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 408,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}

Headers = tuple[tuple[bytes, bytes], ...]


class Answer(NamedTuple):
    """A whole response; the connection adds what is about itself."""

    status: int
    headers: Headers
    body: bytes = b""


def http_status(code: grpc.StatusCode) -> int:
    """What HTTP calls it."""
    return _STATUSES[code]


def text(status: int, body: str, *headers: tuple[bytes, bytes]) -> Answer:
    """A refusal as Go's ``http.Error`` says it."""
    return Answer(status, (TEXT, NO_SNIFFING, *headers), body.encode() + b"\n")


def moved(path: str, query: str) -> Answer:
    """Where `path` is, as Go's router says it, without the page for people."""
    where = quote(path, safe="/$&+,:;=@") + ("?" + query if query else "")
    return Answer(301, ((b"location", where.encode()),))


def refusal(code: grpc.StatusCode, message: str, status: int = 0) -> Answer:
    """A call's error. `error` repeats the message: clients read one or the other."""
    fields = {"error": message, "code": code.value[0], "message": message}
    return Answer(status or http_status(code), (JSON,), json.dumps(fields, separators=(",", ":")).encode())


def stream_error(code: grpc.StatusCode, message: str) -> bytes:
    """The last message of a stream that ends with an error; its fields are those of both generations of the gateway."""
    status = http_status(code)
    fields = {
        "grpc_code": code.value[0],
        "http_code": status,
        "message": message,
        "http_status": HTTPStatus(status).phrase,
        "code": code.value[0],
    }
    return json.dumps({"error": fields}, separators=(",", ":")).encode() + b"\n"

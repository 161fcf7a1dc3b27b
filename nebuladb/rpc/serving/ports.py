"""Listening sockets from addresses as gRPC writes them."""

from __future__ import annotations

import socket


def split(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port``; an empty host is every address. Raises `RuntimeError`."""
    host, colon, port = address.removeprefix("dns:///").rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65_535:
        raise RuntimeError(f"{address!r} is no HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind(address: str, *, reuse_port: bool, backlog: int) -> list[socket.socket]:
    """Sockets that listen at every address that `address` names, all at one port. Asks the resolver, and blocks.

    They listen at once and not only bind: two sockets that only bind to one port don't disturb each other, and the
    second server would learn of the first one too late.

    Raises:
        RuntimeError: it is in use, or not this machine's (what ``grpc.aio`` raises).
    """
    host, port = split(address)
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # The same address may come for several protocols; in an order that doesn't depend on hashing.
        for family, where in dict.fromkeys((entry[0], entry[4]) for entry in found):
            if sockets and not port:
                where = (where[0], sockets[0].getsockname()[1], *where[2:])
            sockets.append(_listening(family, where, reuse_port, backlog))
    except OSError as error:
        for one in sockets:
            one.close()
        raise RuntimeError(f"can't listen at {address}: {error}") from error
    return sockets


def why_not(error: RuntimeError) -> str:
    """Why a server, ours or grpcio's, could not listen, for a person."""
    cause = error.__cause__
    # grpcio keeps the reason to itself.
    return str(cause.strerror) if isinstance(cause, OSError) else "it is in use, or not this machine's"


def _listening(family: int, where: tuple[object, ...], reuse_port: bool, backlog: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(where)
        one.listen(backlog)
        one.settimeout(0)
    except OSError:
        one.close()
        raise
    return one

"""Targets (gRPC's naming.md): "host:port", "dns:///host:port", "ipv4:a:p,b:q", "ipv6:[a]:p,…", "unix:path"."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Final, NamedTuple

DEFAULT_PORT: Final = 443
MAX_ENDPOINTS: Final = 256
"""Addresses of one target; a name with more is used with the first ones."""
_asked: dict[tuple[asyncio.AbstractEventLoop, str, int], asyncio.Future[list[Any]]] = {}
"""Names about which the system is being asked. It may say nothing for half a minute, of which a thread waits each
second: whoever asks again meanwhile waits for the same answer."""


class Endpoint(NamedTuple):
    """Where to connect: an address and port, or a socket in the file system."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"ipv6:[{self.host}]:{self.port}" if ":" in self.host else f"ipv4:{self.host}:{self.port}"


class Target(NamedTuple):
    """A parsed target: a `name` to resolve, or `endpoints` that stand."""

    text: str
    authority: str
    """What calls say in ``:authority``."""
    host: str
    """What the server's certificate must bear."""
    name: tuple[str, int] | None
    endpoints: tuple[Endpoint, ...]

    async def resolve(self) -> tuple[Endpoint, ...]:
        """The endpoints now, each once. Raises `OSError` if the name has none."""
        if self.name is None:
            return self.endpoints
        host, port = self.name
        found = await asyncio.shield(_ask(host, port))
        endpoints = dict.fromkeys(Endpoint(str(address[0]), int(address[1])) for *_, address in found)
        if not endpoints:
            raise OSError(f"{host} has no address")
        return tuple(endpoints)[:MAX_ENDPOINTS]


def _ask(host: str, port: int) -> asyncio.Future[list[Any]]:
    """What the system says of a name. In a thread of its own, and not of the loop's few: others need those, and the
    process would not end before the answer."""
    loop = asyncio.get_running_loop()
    key = loop, host, port
    future = _asked.get(key)
    if future is not None:
        return future
    future = _asked[key] = loop.create_future()

    def done(found: list[Any] | Exception) -> None:
        del _asked[key]
        if isinstance(found, Exception):
            future.set_exception(found)
            future.exception()  # nobody may be waiting any more
        else:
            future.set_result(found)

    def ask() -> None:
        found: list[Any] | Exception
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        except ValueError as error:  # as of a name with an empty part, which can't be written for DNS
            found = OSError(f"{host!r} is no name: {error}")
        except Exception as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done, found)

    try:
        threading.Thread(target=ask, name=f"name {host}", daemon=True).start()
    except RuntimeError as error:
        del _asked[key]
        raise OSError(f"no thread to ask for {host} in") from error
    return future


def parse(text: str) -> Target:
    """Raises `ValueError`."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        path = rest[2:] if rest.startswith("///") else rest
        if not path:
            raise ValueError(f"target {text!r} has no path")
        return Target(text, "localhost", "localhost", None, (Endpoint("", 0, path),))
    if colon and scheme in ("ipv4", "ipv6"):
        return _listed(text, scheme, rest)
    if colon and scheme == "dns":
        if rest.startswith("//"):
            server, slash, rest = rest[2:].partition("/")
            if server or not slash:
                raise ValueError(f"target {text!r}: only the system's own DNS is asked, as in dns:///host:port")
    else:
        rest = text
    host, port = _split(text, rest)
    port = DEFAULT_PORT if port is None else port
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if _is_address(host):
        return Target(text, authority, host, None, (Endpoint(host, port),))
    return Target(text, authority, host, (host, port), ())


def _listed(text: str, scheme: str, rest: str) -> Target:
    endpoints = []
    for part in rest.split(","):
        host, port = _split(text, part)
        try:
            (IPv4Address if scheme == "ipv4" else IPv6Address)(host.partition("%")[0])
        except AddressValueError:
            raise ValueError(f"target {text!r}: {host!r} is no {scheme} address") from None
        endpoints.append(Endpoint(host, DEFAULT_PORT if port is None else port))
    if len(endpoints) > MAX_ENDPOINTS:
        raise ValueError(f"target {text[:64]!r}… has {len(endpoints)} endpoints; at most {MAX_ENDPOINTS} are taken")
    return Target(text, rest.partition(",")[0], endpoints[0].host, None, tuple(dict.fromkeys(endpoints)))


def _split(text: str, part: str) -> tuple[str, int | None]:
    """Host, without brackets, and port if there is one."""
    if part.startswith("["):
        host, bracket, port = part[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"target {text!r}: {part!r} is no [address]:port")
        port = port[1:]
    elif part.count(":") > 1:
        host, port = part, ""
    else:
        host, _, port = part.partition(":")
    if not host or any(c.isspace() or c in "/@" for c in host):
        raise ValueError(f"target {text!r} is not HOST:PORT")
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(f"target {text!r}: {port!r} is no port")
    return host, int(port)


def _is_address(host: str) -> bool:
    for kind in (IPv4Address, IPv6Address):
        try:
            kind(host.partition("%")[0])
        except AddressValueError:
            continue
        return True
    return False

"""HOST:PORT, as every address is written: in the configuration, as an endpoint, of a member."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from nebuladb.errors import ConfigurationError

MAX_PORT: Final = 65535
MAX_NAME: Final = 253
"""Letters of a host's name (RFC 1035, 2.3.4)."""
SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
"""With these words before a colon gRPC says of what kind the rest of a target is."""


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[ipv6]:port``. Raises `ConfigurationError` that says what is wrong."""
    scheme, slashes, rest = text.partition("://")
    if slashes:
        raise ConfigurationError(f"{text!r} is not HOST:PORT: write it without {scheme}://, like {rest.rstrip('/')}")
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ConfigurationError(f"{text!r} is not HOST:PORT")
    if host.startswith("[") != host.endswith("]"):
        raise ConfigurationError(f"{text!r}: an IPv6 address is written [ADDRESS]:PORT")
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ConfigurationError(f"{text!r}: {host!r} is not an IPv6 address") from error
    elif ":" in host:
        raise ConfigurationError(f"{text!r}: an IPv6 address is written [ADDRESS]:PORT")
    if (
        len(host) > MAX_NAME
        or any(letter.isspace() or letter in "/@,=\0" for letter in host)
        or not _can_be_asked(host)
    ):
        raise ConfigurationError(f"{text!r}: {host!r} is not a host name")
    # isdecimal alone would accept digits of other scripts.
    if not (port_text.isascii() and port_text.isdecimal()) or not 1 <= int(port_text) <= MAX_PORT:
        raise ConfigurationError(f"{text!r}: the port is a number from 1 to {MAX_PORT}")
    return host, int(port_text)


def channel_target(address: str) -> str:
    """What a channel is given for a valid address: `address`, unless its host is called as a scheme of gRPC's is."""
    return f"dns:///{address}" if address.partition(":")[0].lower() in SCHEMES else address


def _can_be_asked(host: str) -> bool:
    """Whether DNS has a way to write it: Python has no other error for that than one of text."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def is_unspecified(text: str) -> bool:
    """Whether one can listen at this valid address but nobody can be sent to it (0.0.0.0, ::, and 0, which the
    system takes for one)."""
    host, _ = split_address(text)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return not any(socket.inet_aton(host))
        except OSError:
            return False
    return (getattr(address, "ipv4_mapped", None) or address).is_unspecified

"""Which process has the other end of a connection over loopback (Linux: sock_diag(7), inet_diag.h)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

LOOPBACK: Final = "127.0.0.1"

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST: Final = 1
_ANY_COOKIE: Final = b"\xff" * 8
_HEADER: Final = struct.Struct("=IHHII")
_ANSWER: Final = 65536
_INODE_AT: Final = _HEADER.size + 68
"""Behind four bytes, the socket's id (48) and four numbers."""


def inode(local: int, remote: int) -> int:
    """Of the socket that has port `local` of loopback and is connected with port `remote`; 0: there is none.

    One is asked for by name, since reading /proc/net/tcp takes milliseconds on a busy machine. Raises: OSError where
    the kernel can't tell.
    """
    address = socket.inet_aton(LOOPBACK) + bytes(12)
    ends = struct.pack("!HH", local, remote) + 2 * address + bytes(4) + _ANY_COOKIE
    body = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + ends
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as link:
        link.sendto(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 0, 0) + body, (0, 0))
        answer = link.recv(_ANSWER)
    if _HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return 0
    (found,) = struct.unpack_from("=I", answer, _INODE_AT)
    return int(found)


def known() -> bool:
    """Whether this kernel can tell."""
    if not hasattr(socket, "AF_NETLINK"):
        return False
    with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname()) as end:
        with contextlib.suppress(OSError):
            return inode(end.getsockname()[1], server.getsockname()[1]) == os.fstat(end.fileno()).st_ino
        return False


def has(pid: int, number: int) -> bool:
    """Whether a process has this socket. It may end while it is looked at."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) == f"socket:[{number}]":
                    return True
    return False

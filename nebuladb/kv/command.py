"""What a log entry asks of the state machine. ``node.entry`` gives commands their bytes; the body is a client's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """How `body` is read. Numbers are in the log: never reuse one. An unknown kind stops the replica (S22)."""

    CLOCK = 1
    """Nothing but the entry's lease clock; the body is empty."""
    PUT = 2
    """``nebula.v1.PutRequest``"""
    DELETE = 3
    """``nebula.v1.DeleteRequest``"""
    TXN = 4
    """``nebula.v1.TxnRequest``"""
    COMPACT = 5
    """``nebula.v1.CompactRequest``"""
    LEASE_GRANT = 6
    """``nebula.v1.LeaseGrantRequest``; the leader chose the id if the client didn't (`chosen`)."""
    LEASE_REVOKE = 7
    """``nebula.v1.LeaseRevokeRequest``, asked for by a client."""
    LEASE_KEEP_ALIVE = 8
    """``nebula.v1.LeaseKeepAliveRequest``"""
    LEASE_EXPIRE = 9
    """i64 lease id, u64 renewal: revoke it unless it was renewed since (S27)."""
    SESSION_OPEN = 10
    """``nebula.v1.SessionOpenRequest``; the leader drew the id (`chosen`). 0, from a build that drew none: the entry's
    index * 2**16 + the command's place in it."""
    SESSION_CLOSE = 11
    """``nebula.v1.SessionCloseRequest``"""
    HASH = 12
    """Take a hash of the state at exactly this index (S28); the body is empty."""


class Command(NamedTuple):
    """One request as it stands in the log (S21)."""

    kind: int
    body: bytes
    epoch: int = 0
    """Descriptor epoch that the request names; 0 = none. Checked again at apply."""
    origin: int = 0
    """Node id of the node that will answer the client; 0 = nobody."""
    request: int = 0
    """The origin's name for it, unique to its process."""
    session: int = 0
    sequence: int = 0
    lowest: int = 0
    """Lowest sequence number that the client still waits for."""
    principal: int = 0
    """Who asked (user id; 0 = no authentication), and `auth_revision`, under which rights."""
    auth_revision: int = 0
    chosen: int = 0
    """A value that the client left open and the leader chose."""
    flags: int = 0
    version: int = 2
    """Of the entry's payload, hence not in the command's own bytes: by which rules it is applied. Of 1, a transaction
    may read more than `MAX_TXN_BYTES`."""

    @property
    def bounded(self) -> bool:
        """Whether `MAX_TXN_BYTES` binds it."""
        return self.version > 1


@dataclass(slots=True)
class Work:
    """One committed log entry, decoded: what `Store.apply` takes."""

    index: int
    term: int
    clock: int
    """The leader's lease clock in ms; apply takes the maximum (S27). 0 = none."""
    commands: Sequence[Command]
    configuration: bytes = b""
    """Not empty if the entry is a configuration change: the new configuration's bytes. Always the last of a slice."""

"""Alarms that somebody declared for the whole cluster, as etcd has them: rows of meta, until they are taken back.

Beside these each node has alarms of its own (``node.alarms``), which come and go with what they tell of.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from nebuladb.errors import ClusterCorrupt, Corruption, NebulaError, NoSpace
from nebuladb.kv.command import Command, Kind
from nebuladb.node.disk import grows

ALARM_PREFIX: Final = b"alarm/"
MAX_DECLARED: Final = 1_024
"""Rows: anybody may declare one for any id."""
_FORMAT: Final = b'{"format":1}'
_CHANGING: Final = frozenset(
    (Kind.PUT, Kind.DELETE, Kind.COMPACT, Kind.LEASE_GRANT, Kind.LEASE_REVOKE, Kind.SESSION_OPEN, Kind.TXN)
)


class Declared(StrEnum):
    """What an alarm forbids."""

    NO_SPACE = "nospace"
    """Clients' writes that need space."""
    CORRUPT = "corrupt"
    """All of clients' writes."""


class DeclaredAlarm(NamedTuple):
    """One of a node, or of whatever id the operator named."""

    kind: Declared
    node: int

    @property
    def key(self) -> bytes:
        """Its row's key."""
        return ALARM_PREFIX + self.kind.encode() + b"/%016x" % self.node

    def text(self, name: str) -> str:
        """For people; `name` is the node's."""
        what = "writes that need space" if self.kind is Declared.NO_SPACE else "writes"
        whose = f" for {name}" if self.node else ""
        return f"the alarm {self.kind.upper()} was raised{whose}: {what} are refused until `etcdctl alarm disarm`"

    def encode(self) -> bytes:
        """The row's value: the key says it all."""
        return _FORMAT

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> DeclaredAlarm:
        """Raises `Corruption`."""
        if value != _FORMAT:
            raise Corruption(f"an alarm has value {value[:40]!r}; this build knows {_FORMAT!r}")
        return cls.named(key)

    @classmethod
    def named(cls, key: bytes) -> DeclaredAlarm:
        """The one whose row has `key`. Raises `Corruption`."""
        try:
            _, kind, node = key.decode().split("/")
            return cls(Declared(kind), int(node, 16))
        except ValueError as error:
            raise Corruption(f"an alarm's row can't be read: {error}") from error


def forbidden(alarms: frozenset[Declared], command: Command) -> NebulaError | None:
    """Why a client's `command` may not be done while these are declared."""
    if Declared.CORRUPT in alarms and command.kind in _CHANGING:
        return ClusterCorrupt("the alarm CORRUPT is raised: no writes are taken until `etcdctl alarm disarm`")
    if Declared.NO_SPACE in alarms and grows(command.kind, command.body):
        return NoSpace(
            "the alarm NOSPACE is raised: deletions and compactions are taken, other writes are not until `etcdctl "
            "alarm disarm`"
        )
    return None

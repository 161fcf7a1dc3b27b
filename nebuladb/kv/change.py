"""What an apply tells its caller, and a change as watches see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nebuladb.kv.answer import Answer, KeyValue
from nebuladb.kv.rows import Record


class Change(NamedTuple):
    """A put or a deletion, committed and published."""

    key: bytes
    record: Record
    previous: Record | None
    """What the key was before; None if it didn't exist, if that is compacted away, or if it wasn't asked for."""

    @property
    def revision(self) -> int:
        """The revision that it belongs to."""
        return self.record.main

    @property
    def deleted(self) -> bool:
        """Whether it is a deletion."""
        return self.record.version == 0

    @property
    def kv(self) -> KeyValue:
        """The key after it; of a deletion only key and mod revision are set."""
        return key_value(self.key, self.record)

    @property
    def previous_kv(self) -> KeyValue | None:
        """The key before it."""
        return None if self.previous is None else key_value(self.key, self.previous)


def key_value(key: bytes, record: Record) -> KeyValue:
    """A record as it is answered."""
    return KeyValue(key, record.create, record.main, record.version, record.lease, record.value)


class LeaseChange(NamedTuple):
    """Granted, renewed or (`expires` = 0) gone. For the heap of what is due, outside the state machine."""

    lease: int
    expires: int
    """On the lease clock, ms."""
    renewal: int


class LeaseState(NamedTuple):
    """A lease as it stands; `ttl` ms, `expires` on the lease clock, ms."""

    id: int
    ttl: int
    expires: int
    renewal: int


class LeaseInfo(NamedTuple):
    """What TimeToLive answers, in seconds."""

    remaining: int
    ttl: int


@dataclass(slots=True)
class Applied:
    """What one `Store.apply` did."""

    index: int = 0
    term: int = 0
    """Of the last entry that is fully applied."""
    partial: bool = False
    """The entry after `index` is half applied: call again with the same works, before anything else."""
    midway: bool = False
    """What is half applied is a command: the rest of it is to come, in further slices; or all of it, when enough of
    what is in its way was removed."""
    revision: int = 0
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    """(request, answer) of this node's own requests, in log order."""
    events: list[Change] = field(default_factory=list)
    """What was published, in order, whole revisions."""
    missing: bool = False
    """Revisions too large to be kept in memory are left out of `events`; watchers read them from history."""
    leases: list[LeaseChange] = field(default_factory=list)
    configuration: bytes = b""
    """The configuration that was applied, if any; then it was the last entry of this call."""
    background: bool = False
    """`Store.background` has got something to do by it: a compaction, or a hash."""
    size: int = 0
    """Bytes written to the engine."""
    examined: int = 0
    """Rows written or looked at; many bytes count as several."""
    wanted: list[bytes] = field(default_factory=list)
    """Not empty: the next command reads rows that are on the disk only. `Store.borrow` them, fetch them, `supply` them,
    and call again with the same works."""

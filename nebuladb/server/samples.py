"""What the metrics read from a node at the time of a scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSample:
    """One replica of this node. Counts are since the process started."""

    group: int
    keyspace: str
    leading: bool
    has_leader: bool
    term: int
    committed: int
    applied: int
    last_index: int
    log_start: int
    revision: int
    leader_changes: int
    """How often this replica saw a new leader."""
    proposals: int
    """Entries that this replica appended as leader."""
    proposals_refused: int
    """Writes that this replica refused its node's clients, since too many waited."""


@dataclass(frozen=True, slots=True)
class QueueSample:
    """A bounded queue or cache: how much is in it, and how much may be, in its own unit (its name says which)."""

    name: str
    size: int
    bound: int


class NodeSamples(Protocol):
    """What a node shows of itself. Called in the event loop, once a scrape, and never on the hot path."""

    def groups(self) -> Iterable[GroupSample]:
        """Every replica here, in group order."""
        ...

    def queues(self) -> Iterable[QueueSample]:
        """Every bounded queue here."""
        ...

    def snapshots(self) -> Mapping[str, int]:
        """Of snapshots between nodes since the process started: sent, received, failed, refused, sent_bytes,
        received_bytes, received_ms."""
        ...

    def alarms(self) -> Mapping[str, int]:
        """How many alarms of each kind are raised."""
        ...

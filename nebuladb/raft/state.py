"""What the parts of one replica share: its configuration values, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nebuladb.errors import ConfigurationError


class StateRole(StrEnum):
    """A replica's role; the value is what people are shown."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


FOLLOWER: Final = StateRole.FOLLOWER
PRE_CANDIDATE: Final = StateRole.PRE_CANDIDATE
CANDIDATE: Final = StateRole.CANDIDATE
LEADER: Final = StateRole.LEADER
"""Bound once, here and in other modules: to look up an enumeration's member takes ten times as long as a name does, and
these are asked for with every message."""


@dataclass(frozen=True, slots=True)
class Config:
    """One replica's settings. Times are in ticks, sizes in bytes of entry records."""

    replica: int
    """Our own replica id, never 0."""
    election_ticks: int = 10
    """Least election timeout; each is drawn from [election_ticks, 2 * election_ticks)."""
    heartbeat_ticks: int = 2
    rest_ticks: int = 20
    """Ticks without anything to do, the loss of a peer included, after which a leader may fall quiet: two election
    timeouts, so that it has just made sure of its quorum by what it heard meanwhile."""
    max_append_bytes: int = 512 << 10
    """Of entries in one append; a single larger entry goes alone."""
    max_inflight_messages: int = 256
    """Appends on their way to one follower."""
    max_inflight_bytes: int = 8 << 20
    max_uncommitted_bytes: int = 64 << 20
    """Of a leader's proposals that aren't committed yet; beyond them it refuses more."""
    campaigns: bool = True
    """Whether it may stand for election. It votes in any case."""
    pre_vote: bool = True
    check_quorum: bool = True
    guards_leases: bool = False
    """Leaders may read by their lease: a replica votes only a least election timeout after its start (S9)."""

    def __post_init__(self) -> None:
        if self.replica <= 0:
            raise ConfigurationError("a replica id is positive")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ConfigurationError("a heartbeat must be shorter than the election timeout, and both positive")
        limits = self.max_append_bytes, self.max_inflight_messages, self.max_inflight_bytes, self.max_uncommitted_bytes
        if min(limits) <= 0:
            raise ConfigurationError("a limit of Raft's must be positive")


@dataclass(slots=True, eq=False)
class State:
    """Where a replica stands: the base of `Raft`, and all that its parts see of it. Changed by `Raft`'s transitions
    alone, but for a vote that `Election` grants, a leader's `floor` and `transferee`, and a follower's rest."""

    replica: int
    """Our own replica id."""
    term: int
    """The current term."""
    vote: int
    """Replica id that has our vote in `term`, else 0."""
    durable_term: int
    """The latest term that is known to be durable here; below `term` while that is on its way to disk."""
    role: StateRole = FOLLOWER
    """Our role in `term`."""
    leader: int = 0
    """Replica id of the leader of `term` as far as we know, else 0."""
    floor: int = 0
    """Index that every replica of the group holds durably, as far as we know, or for which none is waited: none will be
    sent entries up to here. Never goes back (S6)."""
    quiet: bool = False
    """Whether no time passes here until `wake` (S11)."""
    transferee: int = 0
    """On a leader: the replica that leadership is being handed to, else 0; meanwhile nothing is proposed."""

"""What a majority, or two in a joint configuration, agree on (paper §5.3, §6; thesis §4.3). Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from nebuladb.raft.configuration import Configuration
from nebuladb.raft.progress import Progress

UNBOUNDED: Final = 2**64 - 1
"""What the empty set of voters has committed: everything, so that it doesn't hold back the other half of a joint
configuration."""


class VoteResult(Enum):
    """How a vote stands."""

    PENDING = 0
    LOST = 1
    WON = 2


WON: Final = VoteResult.WON
"""Bound once: see `raft.state.LEADER`."""


def majority_committed(voters: tuple[int, ...], progress: Mapping[int, Progress]) -> int:
    """The highest index that a majority of `voters` holds, each of which has its `progress`."""
    if not voters:
        return UNBOUNDED
    indexes = [progress[voter].match for voter in voters]
    indexes.sort()
    return indexes[(len(indexes) - 1) // 2]


def committed(configuration: Configuration, progress: Mapping[int, Progress]) -> int:
    """The highest index that every majority of `configuration` holds."""
    index = majority_committed(configuration.voters, progress)
    if configuration.outgoing:
        index = min(index, majority_committed(configuration.outgoing, progress))
    return index


def majority_vote(voters: tuple[int, ...], votes: Mapping[int, bool]) -> VoteResult:
    """The result among `voters`; who is missing from `votes` hasn't answered. The empty set agrees to all."""
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote:
            granted += 1
        elif vote is not None:
            refused += 1
    needed = len(voters) // 2 + 1
    if granted >= needed or not voters:
        return WON
    return VoteResult.LOST if len(voters) - refused < needed else VoteResult.PENDING


def vote_result(configuration: Configuration, votes: Mapping[int, bool]) -> VoteResult:
    """Won if both majorities are won, lost as soon as one of them is lost."""
    incoming = majority_vote(configuration.voters, votes)
    outgoing = majority_vote(configuration.outgoing, votes)
    if incoming is outgoing:
        return incoming
    return VoteResult.LOST if VoteResult.LOST in (incoming, outgoing) else VoteResult.PENDING

"""Changes of a configuration, as functions from value to value (thesis, chapter 4).

A configuration changes by one voter at a time, or by way of a joint one. Outgoing voters that a joint change makes
learners wait in `learners_next` until the joint configuration is left: a replica is never both.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from nebuladb.errors import InvalidArgument
from nebuladb.raft.configuration import Configuration


class ChangeType(Enum):
    """What becomes of a replica."""

    ADD_VOTER = "v"
    ADD_LEARNER = "l"
    REMOVE = "r"


class Change(NamedTuple):
    """One step of a configuration change."""

    type: ChangeType
    replica: int


class Changer:
    """Computes the configurations that may follow `configuration`. Raises `InvalidArgument`; never alters a value."""

    __slots__ = ("configuration",)

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def simple(self, changes: Iterable[Change]) -> Configuration:
        """Changes of at most one voter: the old and the new majorities overlap, so no joint configuration is needed."""
        old = self.configuration
        if old.outgoing:
            raise InvalidArgument("can't apply simple config change in joint config")
        new = _apply(old, changes)
        if len(set(old.voters) ^ set(new.voters)) > 1:
            raise InvalidArgument("more than one voter changed without entering joint config")
        return check(new)

    def enter_joint(self, changes: Iterable[Change], *, auto_leave: bool) -> Configuration:
        """Any changes: both the old and the new majority decide until the configuration is left."""
        old = self.configuration
        if old.outgoing:
            raise InvalidArgument("config is already joint")
        if not old.voters:
            raise InvalidArgument("can't make a zero-voter config joint")
        new = _apply(old._replace(outgoing=old.voters), changes)
        return check(new._replace(auto_leave=auto_leave))

    def leave_joint(self) -> Configuration:
        """The incoming half alone; who waited to become a learner is one."""
        old = self.configuration
        if not old.outgoing:
            raise InvalidArgument("can't leave a non-joint config")
        learners = tuple(sorted({*old.learners, *old.learners_next}))
        return check(Configuration(old.voters, (), learners))


def replicas(configuration: Configuration) -> tuple[int, ...]:
    """Every replica that is sent the log, ascending."""
    voters, outgoing, learners, learners_next, _ = configuration
    return tuple(sorted({*voters, *outgoing, *learners, *learners_next}))


def check(configuration: Configuration) -> Configuration:
    """Return `configuration` if it is well-formed, else raise `InvalidArgument`."""
    voters, outgoing, learners, learners_next, auto_leave = configuration
    if not set(learners).isdisjoint({*voters, *outgoing}):
        raise InvalidArgument("a learner votes")
    if not set(learners_next) <= set(outgoing) - set(voters):
        raise InvalidArgument("a learner to be is not an outgoing voter")
    if auto_leave and not outgoing:
        raise InvalidArgument("a configuration that isn't joint can't be left")
    return configuration


def _apply(configuration: Configuration, changes: Iterable[Change]) -> Configuration:
    """Apply `changes` to the incoming half, in order; each is idempotent."""
    voters, learners = set(configuration.voters), set(configuration.learners)
    outgoing, learners_next = set(configuration.outgoing), set(configuration.learners_next)
    for kind, replica in changes:
        for ids in (voters, learners, learners_next):
            ids.discard(replica)
        if kind is ChangeType.ADD_VOTER:
            voters.add(replica)
        elif kind is ChangeType.ADD_LEARNER:
            (learners_next if replica in outgoing else learners).add(replica)
    if not voters:
        raise InvalidArgument("removed all voters")
    return configuration._replace(
        voters=tuple(sorted(voters)), learners=tuple(sorted(learners)), learners_next=tuple(sorted(learners_next))
    )

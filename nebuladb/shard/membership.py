"""Which nodes should have a replica of which group, and what a group's leader does next about it: pure decisions.

The meta group's leader turns `wanted` into roles in descriptors; each group's leader turns those into changes of its
configuration, and reports what has come true. So the one never waits for the other, and whoever dies is replaced by
somebody who reads the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from nebuladb.raft import Configuration
from nebuladb.raft.confchange import Change, ChangeType, replicas
from nebuladb.shard.descriptor import Descriptor, Role

MAX_VOTERS: Final = 5
"""Of a group. Two may be lost at once; more voters make every write slower and hardly anything safer."""


class Standing(NamedTuple):
    """A node that may have replicas."""

    node: int
    votes: bool = True
    """False: it shall have the log of every group, and vote in none (yet)."""


def wanted(shard: Descriptor, standings: Iterable[Standing]) -> dict[int, Role]:
    """Node → VOTER or LEARNER: what each node that may have replicas should have of `shard`.

    Votes go first to those who have one, then to those who are about to get one, then to learners, and what is left to
    nodes in an order that differs from group to group. All others have a learner, so that every node answers for every
    key.
    """
    standings = sorted(standings)
    roles = {node: shard.role(replica) for replica, node in shard.replicas}
    order = (Role.VOTER, Role.JOINING, Role.LEARNER)
    able = [one.node for one in standings if one.votes]
    turn = shard.group % len(able) if able else 0
    able = able[turn:] + able[:turn]

    def rank(node: int) -> int:
        role = roles.get(node)
        return order.index(role) if role in order else len(order)

    voters = sorted(able, key=rank)[:MAX_VOTERS]  # stable: the turn decides between equals
    found = dict.fromkeys(voters, Role.VOTER)
    for one in standings:
        found.setdefault(one.node, Role.LEARNER)
    return found


class Revision(NamedTuple):
    """What has to change in a descriptor."""

    roles: tuple[tuple[int, int, Role], ...]
    """(replica, its node, new role)."""
    added: tuple[tuple[int, Role], ...]
    """(node, role) of replicas that need an id."""

    def __bool__(self) -> bool:
        return bool(self.roles or self.added)


def revision(shard: Descriptor, target: Mapping[int, Role]) -> Revision:
    """From what a descriptor says to what `wanted` says. A replica that leaves goes on leaving, and its node, should it
    be wanted again, gets another one when that one is gone (S16)."""
    roles: list[tuple[int, int, Role]] = []
    taken: set[int] = set()
    for replica, node in shard.replicas:
        taken.add(node)
        role, goal = shard.role(replica), target.get(node)
        if role is Role.LEAVING:
            continue
        if goal is None:
            roles.append((replica, node, Role.LEAVING))
        elif role is Role.LEARNER and goal is Role.VOTER:
            roles.append((replica, node, Role.JOINING))
    added = tuple(
        (node, Role.JOINING if role is Role.VOTER else role)
        for node, role in sorted(target.items())
        if node not in taken
    )
    return Revision(tuple(roles), added)


class Decision(NamedTuple):
    """What a group's leader should do; at most one of the three."""

    report: Descriptor | None = None
    """What the descriptor should say, since the configuration says so."""
    changes: tuple[Change, ...] = ()
    """To be proposed as one change."""
    heir: int = 0
    """Replica to hand leadership to, because the leader itself is to leave."""

    def __bool__(self) -> bool:
        return self.report is not None or bool(self.changes or self.heir)


def decide(
    shard: Descriptor,
    configuration: Configuration,
    own: int,
    caught_up: Callable[[int], bool] = lambda _: True,
    heirs: Collection[int] = (),
) -> Decision:
    """The next step from `configuration`, which is the group's and not joint, to what `shard` says; `own` leads.

    `caught_up(learner)`, and `heirs`: voters that could lead, the best first. New replicas become learners first. Those
    that have caught up are promoted, in one joint change with the removal of those whose place they take; until then
    these stay. Nothing is removed because the descriptor doesn't have it (S17).
    """
    reported = _reported(shard, configuration)
    if reported != shard:
        return Decision(report=reported)
    known = set(replicas(configuration))
    roles = {replica: shard.role(replica) for replica, _ in shard.replicas}
    missing = [
        replica for replica, role in roles.items() if role in (Role.JOINING, Role.LEARNER) and replica not in known
    ]
    if missing:
        return Decision(changes=tuple(Change(ChangeType.ADD_LEARNER, replica) for replica in sorted(missing)))
    joining = [replica for replica, role in roles.items() if role is Role.JOINING]
    ready = [replica for replica in joining if caught_up(replica)]
    leaving = [replica for replica, role in roles.items() if role is Role.LEAVING and replica in known]
    idle = [replica for replica in leaving if replica in configuration.learners]
    if idle:
        return Decision(changes=tuple(Change(ChangeType.REMOVE, replica) for replica in idle))
    changes = [Change(ChangeType.ADD_VOTER, replica) for replica in ready]
    if ready or not joining:
        changes += [Change(ChangeType.REMOVE, replica) for replica in leaving if replica != own]
    if changes:
        return Decision(changes=tuple(changes))
    if own in leaving and not joining:
        return Decision(heir=next((replica for replica in heirs if replica not in leaving), 0))
    return Decision()


def _reported(shard: Descriptor, configuration: Configuration) -> Descriptor:
    """What has come true: who was to join votes, who was to leave is gone."""
    known, found = set(replicas(configuration)), shard
    for replica, node in shard.replicas:
        role = shard.role(replica)
        if role is Role.JOINING and replica in configuration.voters:
            found = found.with_role(replica, node, Role.VOTER)
        elif role is Role.LEAVING and replica not in known:
            found = found.without(replica)
    return found


def settled(shard: Descriptor, configuration: Configuration) -> bool:
    """Whether a leader has nothing to do: cheaper than `decide`, and right except where that waits."""
    if configuration.outgoing:
        return True  # it is left by itself
    return all(role is Role.LEARNER and replica in configuration.learners for replica, role in shard.roles)

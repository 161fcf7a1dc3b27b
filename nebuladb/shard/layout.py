"""From a keyspace's record to its shards as they were when it was made."""

from __future__ import annotations

from typing import Final

from nebuladb.errors import invariant
from nebuladb.shard import membership
from nebuladb.shard.descriptor import SLOTS, Descriptor, Keyspace, Partitioning, Role

INITIAL: Final = (1, 1)
"""(index, term) at which every first replica of a group begins (S17)."""


def shard_of(keyspace: Keyspace, place: int) -> Descriptor:
    """Shard number `place` of a planned keyspace. Hash slots are split evenly; a replica is on every node of the plan.
    `MAX_VOTERS` of them vote, other ones from shard to shard; the rest are learners.

    The same on every node and at every time, so that building may be repeated from any point.
    """
    plan = keyspace.plan
    invariant(plan is not None and 0 <= place < plan.shards, f"keyspace {keyspace.name} has no shard number {place}")
    assert plan is not None  # said above; for the type checker
    start = end = b""
    slots = (0, 0)
    if keyspace.partitioning is Partitioning.HASH:
        slots = (place * SLOTS // plan.shards, (place + 1) * SLOTS // plan.shards)
    elif keyspace.partitioning is Partitioning.RANGE:
        edges = (b"", *plan.splits, b"")
        start, end = edges[place], edges[place + 1]
    first = plan.first_replica + place * len(plan.nodes)
    replicas = tuple((first + number, node) for number, node in enumerate(plan.nodes))
    group, count = plan.first_group + place, len(replicas)
    made = Descriptor(group, keyspace.name, 1, start, end, slots, replicas, INITIAL)
    if count <= membership.MAX_VOTERS:
        return made
    # A place further each time round: a group's home (``shard.balance``) follows from its id as well, so that of ten
    # nodes two would lead nothing.
    turn = group + group // count
    voters = sorted(replicas[(turn + number) % count][0] for number in range(membership.MAX_VOTERS))
    roles = tuple((replica, Role.LEARNER) for replica, _ in replicas if replica not in voters)
    return made._replace(founders=tuple(voters), roles=roles)

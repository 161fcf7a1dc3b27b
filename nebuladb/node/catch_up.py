"""How far a node's replicas are behind, as the leaders of their groups know it, and whether that lets it be promoted.

Only a group's leader knows it, so whoever is to judge asks all nodes: each speaks for the groups that it leads.
Nobody's word makes a replica vote: each leader promotes one when it has caught up, and not before (S13).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from nebuladb.node.host import Host
from nebuladb.node.identity import Founding
from nebuladb.node.members import descriptors
from nebuladb.node.meta import Meta
from nebuladb.raft import StateRole

IN_SYNC_PERCENT: Final = 90
"""Of a leader's log that a learner must have to be promoted by etcd's API, as etcd wants it."""


class Lag(NamedTuple):
    """Of one replica."""

    group: int
    term: int
    """In which the one that says so leads: the word of the newest counts."""
    last: int
    """Index of the last entry of its log."""
    lacks: int
    """Entries of it that the replica is not known to hold."""


def lags_led(host: Host, node: int) -> list[Lag]:
    """Of `node`'s replicas in the groups that are led here; none while it isn't heard."""
    peer = host.peers.get(node)
    if peer is None or not peer.near:
        return []
    found = []
    for group, replica in host.replicas.items():
        theirs = replica.on(node)
        if theirs and replica.raft.role is StateRole.LEADER:
            raft = replica.raft
            found.append(Lag(group, raft.term, raft.last_index, raft.membership.lag(theirs)))
    return found


def in_sync(meta: Meta, founding: Founding, node: int, lags: Iterable[Lag]) -> bool:
    """Whether `node`, a learner, has nearly all of every shard that there is: it shall have a replica of each. Of a
    shard of which no leader has spoken nobody knows."""
    newest: dict[int, Lag] = {}
    for lag in lags:
        newest[lag.group] = max(lag, newest.get(lag.group, lag), key=lambda one: one.term)
    for shard in descriptors(meta, founding):
        found = newest.get(shard.group)
        if found is None or node not in dict(shard.replicas).values():
            return False
        if (found.last - found.lacks) * 100 < found.last * IN_SYNC_PERCENT:
            return False
    return True

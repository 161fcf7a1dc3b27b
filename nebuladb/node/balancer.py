"""Who should lead is `shard.preferred`; here is when the one that leads hands over.

Founding groups stay where they are elected: there are two, and whoever looks for the leader of `default` finds it where
it was. For all others, leadership follows the nodes that live, slowly enough that it can't flap. A node counts as back,
or as dead, only after `STEADY_MS`. A leader keeps a group that long before it gives it away: a node that is being
stopped hands over, and would get the group back at once. A hand-over that failed is tried again `RETRY_MS` later.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from nebuladb.node.host import Host
from nebuladb.node.meta import FIRST_GROUP
from nebuladb.node.replica import Replica
from nebuladb.raft import StateRole
from nebuladb.shard import preferred

STEADY_MS: Final = 5_000
RETRY_MS: Final = 10_000
MAX_MOVES: Final = 32
"""Hand-overs begun in one call, which is one a second: each is an election, and the groups answer meanwhile."""
MAX_LAG: Final = 64
"""Entries that a successor may lack: proposals wait until it has them."""


class Balancer:
    """Hands over the groups that this node leads and another should. One a process; `began`: when that started, ms."""

    def __init__(self, node: int, began: int) -> None:
        self._node = node
        self._began = began
        self._led: dict[int, tuple[int, int]] = {}
        """Group → (term in which we lead it, since when, or when a hand-over may be tried again)."""

    def moves(self, host: Host, leaving: Collection[int] = ()) -> list[tuple[int, int]]:
        """(group, node to hand it to), to be done now; nodes that are `leaving` the cluster get none."""
        led: dict[int, tuple[int, int]] = {}
        chosen: list[tuple[int, int]] = []
        # Once for all groups: they are on the same few nodes.
        nodes = {self._node, *host.peers}
        # A node that isn't heard from, that is short of space, or whose disk hangs (``node.disk``), gets nothing.
        live = {node for node in nodes if self._steady(host, node, connected=True) and not _ill(host, node)}
        for group, replica in host.replicas.items():
            if group < FIRST_GROUP or replica.raft.role is not StateRole.LEADER:
                continue
            term, since = self._led.get(group, (0, 0))
            if term != replica.raft.term:
                since = host.now
            elif len(chosen) < MAX_MOVES and host.now - since >= STEADY_MS:
                target = self._target(host, replica, live, leaving)
                if target:
                    chosen.append((group, target))
                    since = host.now + RETRY_MS - STEADY_MS
            led[group] = (replica.raft.term, since)
        self._led = led
        return chosen

    def _target(self, host: Host, replica: Replica, live: Collection[int], leaving: Collection[int]) -> int:
        """Another node that should lead and can; else 0."""
        voters = {voter: replica.nodes.get(voter, 0) for voter in replica.raft.configuration.voters}
        nodes = sorted(node for node in voters.values() if node and node not in leaving)
        dead = [node for node in nodes if node not in live and self._steady(host, node, connected=False)]
        wanted = preferred(replica.group, nodes, live, dead)
        fed = host.receivers(replica.group)
        for other, node in voters.items():
            if node == wanted != self._node and other not in fed and replica.raft.membership.lag(other) <= MAX_LAG:
                return node
        return 0

    def _steady(self, host: Host, node: int, *, connected: bool) -> bool:
        """Whether `node` has been (dis)connected for long enough."""
        if node == self._node:
            return connected
        peer = host.peers.get(node)
        now, since = (peer.connected, peer.since) if peer else (False, self._began)
        return now == connected and host.now - since >= STEADY_MS


def _ill(host: Host, node: int) -> bool:
    return not host.peers[node].well if node in host.peers else bool(host.disk.status)

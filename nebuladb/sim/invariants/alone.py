"""Leaders without a majority: each must notice by itself, whether anybody asks it for something or not (S11)."""

from __future__ import annotations

from typing import Final

from nebuladb.node.node import Node
from nebuladb.raft import LEADER
from nebuladb.raft.confchange import replicas
from nebuladb.raft.quorum import VoteResult, vote_result
from nebuladb.sim.violation import require

LOOK_TICKS: Final = 10
MOST_TICKS: Final = 40
"""It looks at its quorum at each election timeout, and at the second one nothing that it heard before counts; twice
that."""


class Alone:
    """Of all nodes: what each sees of the others, by its links."""

    def __init__(self) -> None:
        self._ticks: dict[int, dict[int, int]] = {}
        """Place → group → ticks, about, for which the leader there has had no majority."""

    def started(self, place: int) -> None:
        """A new life begins."""
        self._ticks[place] = {}

    def ticked(self, place: int, node: Node) -> None:
        """Look at a node after a tick of its own clock."""
        host = node.host
        if host._ticks % LOOK_TICKS:
            return
        alone = self._ticks[place]
        near = {peer for peer, found in host.peers.items() if found.near} | {host.node}
        for group, replica in host.replicas.items():
            raft = replica.raft
            if raft.role is LEADER:
                votes = {voter: replica.home(voter) in near for voter in replicas(raft.configuration)}
                if vote_result(raft.configuration, votes) is not VoteResult.WON:
                    alone[group] = alone.get(group, 0) + LOOK_TICKS
                    require(
                        alone[group] <= MOST_TICKS,
                        f"group {group}: n{place + 1} leads term {raft.term} without a majority",
                    )
                    continue
            alone.pop(group, None)

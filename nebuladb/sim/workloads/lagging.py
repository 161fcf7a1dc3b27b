"""Whether a new node has caught up, as leaders say it to who would promote it (``node.catch_up``)."""

from __future__ import annotations

from collections.abc import Sequence

from nebuladb.node.catch_up import IN_SYNC_PERCENT, in_sync, lags_led
from nebuladb.node.members import descriptors
from nebuladb.node.node import Node
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require


def in_sync_by_all(machines: Sequence[Machine], asked: Node, newcomer: Machine) -> bool:
    """`asked` asks all nodes for `newcomer`. Raise `Violation` if they say that it has what it hasn't."""
    nodes = [machine.node for machine in machines if machine.node is not None and not machine.paused]
    lags = [lag for node in nodes for lag in lags_led(node.host, newcomer.node_id)]
    said = in_sync(asked.meta, asked.founding, newcomer.node_id, lags)
    if newcomer.node is None:
        return said  # it died, and its leaders have yet to see it
    for lag in lags:
        replica = newcomer.node.host.replicas.get(lag.group)
        if replica is None or replica.raft.term != lag.term:
            continue
        last = replica.raft.last_index
        require(
            last >= lag.last - lag.lacks,
            f"group {lag.group}: {newcomer.name} is said to lack {lag.lacks} of {lag.last} entries, and ends at {last}",
        )
        require(
            not said or last * 100 >= lag.last * IN_SYNC_PERCENT,
            f"group {lag.group}: {newcomer.name} is called in sync with entry {last} of {lag.last}",
        )
    groups = {shard.group for shard in descriptors(asked.meta, asked.founding)}
    require(not said or groups <= {lag.group for lag in lags}, f"{newcomer.name} is called in sync by hearsay")
    return said

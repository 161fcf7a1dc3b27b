"""What an ambush looks for in a machine: it knows all."""

from __future__ import annotations

from nebuladb.node.node import Node
from nebuladb.node.output import TICK_MS
from nebuladb.raft import Raft, StateRole
from nebuladb.sim.machine import Machine


def patience(machine: Machine, group: int) -> int:
    """In how many ms a replica that hears of no leader will stand for election, about. Who lies in wait knows all."""
    replica = machine.node.host.replicas.get(group) if machine.node else None
    election = replica.raft._election if replica else None
    return TICK_MS * (election.timeout - election.elapsed) if election else 0


def lease_holds(machine: Machine, group: int, milliseconds: int) -> bool:
    """Whether a leader may read by its lease for so long."""
    host = machine.node.host if machine.node else None
    replica = host.replicas.get(group) if host else None
    if host is None or replica is None:
        return False
    return replica.lease.holds(host.boottime + milliseconds, replica.raft.term, replica.raft.configuration)


def leading(machine: Machine, group: int, term: int) -> Raft | None:
    """The replica there, if it leads in `term`."""
    replica = machine.node.host.replicas.get(group) if machine.node else None
    leads = replica is not None and replica.raft.role is StateRole.LEADER and replica.raft.term == term
    return replica.raft if replica is not None and leads else None


def commits_after(machine: Machine, group: int, term: int) -> bool:
    """Whether the replica there leads since, and has committed more than what its term began with."""
    replica = machine.node.host.replicas.get(group) if machine.node else None
    if replica is None or replica.raft.role is not StateRole.LEADER or replica.raft.term <= term:
        return False
    return replica.raft.commit > replica.raft._replication.first_own


def leads(group: int, term: int, node: Node) -> bool:
    """Whether the replica on this node does, in `term`."""
    replica = node.host.replicas.get(group)
    return replica is not None and replica.raft.role is StateRole.LEADER and replica.raft.term == term

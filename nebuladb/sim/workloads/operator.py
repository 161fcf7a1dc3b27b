"""An operator who looks at nodes: what they say of themselves fits together, and every queue is within its bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nebuladb.errors import NebulaError, NoSpace, StoreError, Unavailable
from nebuladb.kv.command import Command
from nebuladb.kv.history_hash import HistoryHash
from nebuladb.node import proposals, reads
from nebuladb.node.alarms import AlarmKind
from nebuladb.node.disk import Space
from nebuladb.node.node import Node
from nebuladb.node.replica import Replica
from nebuladb.raft import StateRole
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import require
from nebuladb.sim.workloads.hashes import ROWS, Hashes
from nebuladb.sim.workloads.requests import compact, delete_range, put

PAUSE_MS: Final = 400
HASHED: Final = 8
"""Revisions below the newest that a hash may be of."""
SLACK: Final = 2_000
"""Bytes."""
ONE_ENTRY: Final = 20_000
"""Bytes that one may bring at once: the rows of a keyspace of many shards."""
TIMEOUT_MS: Final = 300
ANSWERED: Final = 100
"""Forwards that wait for no one any more, until they are looked for."""


class Operator(Actor):
    """Reads what ``/status`` and ``/metrics`` show; hands leadership over as a node that is to be stopped does; has
    nodes hash their history."""

    def __init__(self, core: Core, machines: Sequence[Machine], board: Board, group: int, name: str) -> None:
        super().__init__(core, machines, board, group, name)
        self._hashes = board.fact(group, Hashes)

    def _begin(self) -> None:
        machine = self._machine()
        node = machine.node
        if node is None or machine.paused:
            self._failed()
            return
        for group, replica in sorted(node.host.replicas.items()):
            self._check(f"{machine.name}, group {group}", replica)
            hub = node.groups[group].hub
            require(
                hub.revision <= node.groups[group].store.revision, f"{machine.name}: watches are ahead of the state"
            )
        self._queues(machine.name, node)
        self._space(machine, node)
        if self._rng.random() < 0.2 and not machine.spoiled:
            for group, replica in sorted(node.host.replicas.items()):
                to = replica.successor() if replica.raft.role is StateRole.LEADER else 0
                for target in self._machines:
                    if target.node_id == to:
                        machine.transfer(group, to)
        if self._rng.random() < 0.1:
            # Orders that can't be carried out: to a node itself, perhaps by one that doesn't lead.
            machine.transfer(self.group, machine.node_id)
        others = [other for other in self._machines if other is not machine]
        self._hash([machine, *others], 0)

    def _hash(self, machines: Sequence[Machine], revision: int) -> None:
        """Of the history up to now, or some revision of late, on the first of `machines`; then on the others:
        what each has deleted by then, and what is written meanwhile, isn't seen in it."""
        machine, node = machines[0], machines[0].node
        try:
            store = machine.store(self.group)
            if node is None or node.host.replicas[self.group].lost:
                self._failed()
                return
            back = self._rng.randrange(2 * HASHED)
            revision = revision or (max(store.revision - back, 1) if back < HASHED else 0)
            work = self._hashes.begin(node, revision)
        except NebulaError as error:
            self._not_hashed(machine, error)
            return
        self._hash_on(machines, node, work)

    def _hash_on(self, machines: Sequence[Machine], node: Node, work: HistoryHash) -> None:
        machine, others = machines[0], machines[1:]
        if machine.node is not node:  # it died
            work.close()
            self._failed()
            return
        try:
            found = work.step(ROWS)
        except StoreError as error:
            work.close()
            self._not_hashed(machine, error)
            return
        if found is None:
            self._core.scheduler.after(1, self._hash_on, machines, node, work)
            return
        work.close()
        self._hashes.took(work, found, machine.name)
        if others:
            self._core.scheduler.after(1, self._hash, others, work.revision)
        else:
            self._ok(PAUSE_MS)

    def _not_hashed(self, machine: Machine, error: NebulaError) -> None:
        """Compacted already, or not served here."""
        if isinstance(error, StoreError) and not machine.spoiled:
            raise error
        self._failed()

    def _space(self, machine: Machine, node: Node) -> None:
        """A node says that it is short of space as long as it is. Then it takes what makes room, and nothing else."""
        short = node.host.disk.space is not Space.PLENTY
        # One of a group is of a snapshot that didn't fit.
        said = any(alarm.kind is AlarmKind.NO_SPACE and not alarm.group for alarm in node.alarms_now.all())
        require(said is short, f"{machine.name}: is short of space: {short}, says so: {said}")
        # An alarm of the cluster refuses before the disk is asked: `Declarer` looks at that.
        if short and self.group in node.host.replicas and not node.meta.alarmed:
            key, where = b"space/%d" % machine.place, f"{machine.name}, short of space"
            require(self._refused(machine, put(key, key)) is not None, f"{where}: a put is taken (S33)")
            refused = self._refused(machine, delete_range(key, b""))
            leads = node.host.replicas[self.group].raft.role is StateRole.LEADER
            require(not isinstance(refused, NoSpace), f"{where}: what makes room is refused (S33)")
            sent_on = leads and isinstance(refused, Unavailable)
            require(not sent_on, f"{where}: a leader sends what makes room to another node (S33): {refused}")
            if self.group in node.groups:  # `Place` looks whether that gives room back
                self._ask(compact(node.groups[self.group].store.revision), lambda outcome: None)

    def _refused(self, machine: Machine, command: Command) -> NebulaError | None:
        """Why the node doesn't take this; one that waits for a snapshot takes nothing."""
        try:
            machine.submit(self.group, command, TIMEOUT_MS, lambda outcome: None)
        except NebulaError as error:
            return error
        return None

    @staticmethod
    def _check(where: str, replica: Replica) -> None:
        raft = replica.raft
        require(
            raft.applied <= raft.commit <= raft.last_index, f"{where}: applied {raft.applied}, commit {raft.commit}"
        )
        require(raft.durable_index <= raft.last_index, f"{where}: durable {raft.durable_index}, last {raft.last_index}")
        require(
            raft.applied <= raft.durable_index, f"{where}: applied {raft.applied}, durable {raft.durable_index} (S1)"
        )
        votes = replica.id in (*raft.configuration.voters, *raft.configuration.outgoing)
        if raft.role is not StateRole.FOLLOWER:
            require(votes, f"{where}: {raft.role} without a vote")
        if raft.role is StateRole.LEADER:
            require(raft.leader == replica.id, f"{where}: it leads, and says that {raft.leader} does")
            require(raft.vote == replica.id, f"{where}: it leads a term in which it voted for {raft.vote}")

    @staticmethod
    def _queues(where: str, node: Node) -> None:
        host = node.host
        pairs = {
            # They make room after what came, a record or two a store.
            "records": (node.records.used, node.records.limit + SLACK * len(node.groups) + ONE_ENTRY),
            "recent entries": (node.log.recent.size, node.log.recent.limit),
            "writes": (host.writes.used, host.writes.limit),
            "outboxes": (node.outboxes.used, node.outboxes.limit + SLACK * len(node.groups)),
            "log memtable": (node.memory.log_memtable, node.memory.log_memtables),
            "flush": (node.memory.flush_bytes, node.memory.data_memtable),
        }
        for group, replica in host.replicas.items():
            pairs[f"writes of group {group}"] = len(replica.proposals), proposals.MAX_PENDING + proposals.MAX_CONTROL
            store = node.groups[group].store
            pairs[f"proposals of group {group}"] = replica.raft.uncommitted_bytes, 1 << 30
            pairs[f"leases of group {group}"] = len(replica.lessor), replica.lessor.scheduled
            pairs[f"loans of group {group}"] = store.borrowed, 100_000
            pairs[f"forwards of group {group}"] = replica.proposals.forwards, proposals.MAX_PENDING + ANSWERED
            pairs[f"reads of group {group}"] = len(replica.reads), reads.MAX_READS
            pairs[f"watches of group {group}"] = len(node.groups[group].hub), 100
            pairs[f"sessions of group {group}"] = store.session_count, 10_000
        for name, (used, limit) in pairs.items():
            require(used <= limit, f"{where}, {name}: {used} of {limit}")
        require(host.unsynced_bytes >= 0, f"{where}: {host.unsynced_bytes} bytes unsynced")
        require(bool(node.meta.client_address(node.identity.node)) <= bool(node.meta.version), f"{where}: address")
        expected = AlarmKind.DATA_LOST, AlarmKind.STALLED, AlarmKind.NO_SPACE
        others = [alarm for alarm in node.alarms_now.all() if alarm.kind not in expected]
        require(not others, f"{where}: {others}")

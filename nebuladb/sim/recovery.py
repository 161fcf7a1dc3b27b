"""After the faults: the cluster serves again within a bound of virtual time, and every node comes to the same state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP, Generation, GroupId
from nebuladb.kv.answer import Answer, HashResult
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.verify import verify_rows
from nebuladb.node.node import Node
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft import StateRole
from nebuladb.shard import KeyspaceState
from nebuladb.sim.actor import Actor
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.life import Written
from nebuladb.sim.machine import Machine
from nebuladb.sim.violation import Violation, require
from nebuladb.sim.workloads.hashes import Hashes
from nebuladb.sim.workloads.history import History
from nebuladb.sim.workloads.lease import TTL
from nebuladb.sim.workloads.reclaimed import is_reclaimed
from nebuladb.sim.workloads.steward import Steward
from nebuladb.sim.workloads.watch import Observer

BOUND_MS = 12_000
"""From the last fault mended to all of it done: some election timeouts, dials and deadlines."""
STEWARD_MS = 12_000
"""As much again for a member that is being replaced in a dozen groups, one after another, while nobody else is busy."""
POLL_MS = 20
TIMEOUT_MS = 1_000
ASK_AGAIN_MS = 4_000
"""Without the hash of some node. It takes more than a second where a node does little at a time, and each keeps few."""
FOUNDED = {META_GROUP, DEFAULT_GROUP, ETCD_GROUP}
SERVING: Final = ("puts succeed", "leases end", "watches complete")
"""The steps whose failure clients see, as a violation names them."""


class Recovery:
    """Steps: clients have their outcomes; a put on each keyspace through each node; leases that nobody renews end; all
    replicas as far as the leader; a state hash at one index everywhere; all watches told all; all replicas level; what
    is compacted is deleted; no alarm is left. Then every node must show what clients may see, and `done` is set."""

    def __init__(self, core: Core, machines: Sequence[Machine], clients: Sequence[Actor], board: Board) -> None:
        self.done = False
        self.incomplete = False
        """Some step was passed over: for a hunt that asks only what clients see."""
        self._core = core
        self._all = machines
        self._machines = [machine for machine in machines if machine.serves]
        self._clients = clients
        self._board = board
        self._deadline = core.scheduler.now + BOUND_MS
        self._latest = core.scheduler.now + STEWARD_MS + BOUND_MS
        self._steps = [self._clients_are_idle, *self._settling()]
        self._groups: list[int] = []
        self._waits: set[tuple[int, int]] = set()
        self._hashes: dict[int, int] = {}
        """Group → index at which its hash is taken."""
        self._asked: dict[int, int] = {}
        """Group → when that was asked for, ms."""
        for client in clients:
            client.stopped = True
        self._poll()

    def _settling(self) -> list[Callable[[], bool]]:
        """The steps from when clients have their outcomes."""
        return [
            self._keyspaces_are_settled,
            self._puts_begin,
            self._puts_succeed,
            self._leases_end,
            self._caught_up,
            self._hashes_equal,
            self._watches_complete,
            self._level,
            self._reclaimed,
            self._no_alarms,
        ]

    def _poll(self) -> None:
        self._machines = [machine for machine in self._machines if machine.serves]
        if any(machine.node and not machine.node.groups.keys() >= set(self._groups) for machine in self._machines):
            # A removal whose outcome nobody knew, and which was refused when it was asked for again, has come only now.
            self._core.hit("removal came late")
            self._groups, self._steps = [], self._settling()
            self._hashes.clear()
        while self._steps and self._steps[0]():
            del self._steps[0]
        if not self._steps:
            self._facts_hold()
            self.done = True
            self._core.scheduler.stop()
            return
        if self._core.scheduler.now >= self._deadline:
            step = self._steps[0].__name__.strip("_").replace("_", " ")
            raise Violation(f"{BOUND_MS} ms after the last fault was mended this is not so: {step}; {self._picture()}")
        self._core.scheduler.after(POLL_MS, self._poll)

    def _picture(self) -> str:
        """Where every replica is, for whoever reads the violation."""
        return "; ".join(
            f"{machine.name} group {group}: {replica.raft.role} of term {replica.raft.term}, "
            f"applied {replica.applied}, commit {replica.raft.commit}, last {replica.raft.last_index}"
            for machine in self._machines
            if machine.node is not None
            for group, replica in machine.node.host.replicas.items()
        )

    def _clients_are_idle(self) -> bool:
        if busy := [client for client in self._clients if client.busy]:
            if all(isinstance(client, Steward) for client in busy):
                self._deadline = min(self._core.scheduler.now + BOUND_MS, self._latest)
            return False
        self._machines = [machine for machine in self._all if machine.serves]
        return True

    def _keyspaces_are_settled(self) -> bool:
        """None is half made or half dropped any more (the leader of meta saw to it), no alarm is declared, nothing is
        to be destroyed but by those who are gone, and every node has a replica of every shard."""
        nodes = [machine.node for machine in self._machines]
        here = {machine.node_id for machine in self._machines}
        groups: set[int] = set()
        for node in nodes:
            if node is None or any(
                keyspace.state is not KeyspaceState.READY for keyspace in node.meta.keyspaces.values()
            ):
                return False
            if node.meta.declared:
                return False
            if any(removal.node in here for removal in node.meta.removals):
                return False
            groups = {META_GROUP, *node.meta.shards}
            if not groups >= FOUNDED or node.groups.keys() != groups:
                return False
        if len({tuple(sorted(node.groups)) for node in nodes if node}) > 1:
            return False
        self._groups = sorted(groups)
        return True

    # --- a put through every node ------------------------------------------------------------------------------------

    def _puts_begin(self) -> bool:
        groups = sorted({*(self._groups or FOUNDED)} - {META_GROUP})
        self._waits = {(machine.place, group) for machine in self._machines for group in groups}
        for machine in self._machines:
            for group in groups:
                self._put(machine, group)
        return True

    def _put(self, machine: Machine, group: int) -> None:
        request = kv_pb2.PutRequest(key=b"probe/%d" % machine.place, value=b"%d" % group)

        def written(outcome: Answer | NebulaError) -> None:
            if isinstance(outcome, Answer) and not outcome.reason:
                self._waits.discard((machine.place, group))
            else:
                self._core.scheduler.after(POLL_MS, self._put, machine, group)

        self._submit(machine, group, Command(Kind.PUT, request.SerializeToString()), written)

    def _submit(self, machine: Machine, group: int, command: Command, written: Written) -> None:
        try:
            machine.submit(group, command, TIMEOUT_MS, written)
        except NebulaError as error:
            written(error)

    def _puts_succeed(self) -> bool:
        return not any(self._all[place].serves for place, _ in self._waits)

    def _leases_end(self) -> bool:
        """The short leases are over, since nobody renews them any more (S27): no leader knows of one."""
        ended: set[int] = set()
        for node in [machine.node for machine in self._machines if machine.node is not None]:
            for group, data in node.groups.items():
                replica = node.host.replicas.get(group)
                if replica is None or replica.raft.role is not StateRole.LEADER:
                    continue
                lives = any(lease.ttl == TTL * 1_000 for lease in data.store.leases())
                if lives or replica.applied < replica.raft.last_index:
                    return False
                ended.add(group)
        return ended.issuperset(self._groups or FOUNDED)

    # --- the same state everywhere -----------------------------------------------------------------------------------

    def _caught_up(self) -> bool:
        """One leader a group, everything of its log committed, and applied by all."""
        for group in self._groups:
            replicas = [machine.node.host.replicas.get(group) for machine in self._machines if machine.node]
            if any(replica is None for replica in replicas):
                return False
            leaders = [replica for replica in replicas if replica and replica.raft.role is StateRole.LEADER]
            if len(leaders) != 1:
                return False
            if any(replica and replica.applied != leaders[0].raft.last_index for replica in replicas):
                return False
        for group in self._groups:
            self._hash(group)
        return True

    def _hash(self, group: int) -> None:
        self._asked[group] = self._core.scheduler.now

        def written(outcome: Answer | NebulaError) -> None:
            if isinstance(outcome, Answer) and isinstance(outcome.result, HashResult):
                self._hashes[group] = outcome.result.index
            else:
                self._core.scheduler.after(POLL_MS, self._hash, group)

        self._submit(self._machines[0], group, Command(Kind.HASH, b""), written)

    def _hashes_equal(self) -> bool:
        """Every node has taken the hash of every group, and they are equal."""
        if len(self._hashes) < len(self._groups):
            return False
        for group, index in sorted(self._hashes.items()):
            nodes = [machine.node for machine in self._machines if machine.node]
            digests = [node.groups[group].store.hash_at(index) for node in nodes]
            if None in digests:
                if self._core.scheduler.now - self._asked[group] > ASK_AGAIN_MS:
                    self._hash(group)  # one of many at a time is dropped, by each node as it comes
                return False
            require(len(set(digests)) == 1, f"group {group}: the state hashes at index {index} differ: {digests}")
        return True

    def _watches_complete(self) -> bool:
        """Every watch was told everything."""
        watches = [client for client in self._clients if isinstance(client, Observer) and client.group in self._groups]
        return all(client.caught_up() for client in watches)

    def _level(self) -> bool:
        """All are at the same index, still or again: a request that its client gave up may have come only now."""
        for group in self._groups:
            if len({machine.node.groups[group].store.index for machine in self._machines if machine.node}) != 1:
                return False
        return True

    def _reclaimed(self) -> bool:
        """What compactions superseded is deleted on every node."""
        done = True
        for machine in self._machines:
            assert machine.node is not None
            for group in self._groups:
                store = machine.node.groups[group].store
                if store.reclaimed(store.floor):
                    is_reclaimed(machine.node, group, store.floor, machine.name)
                else:
                    done = False
                    machine.work()
        return done

    def _no_alarms(self) -> bool:
        """Nobody is told any more of what was wrong."""
        return not any(machine.node and machine.node.alarms_now.all() for machine in self._machines)

    def _facts_hold(self) -> None:
        """What was acknowledged is there, and what was refused is not, on every node; and what clients saw can be."""
        for machine in self._machines:
            assert machine.node is not None
            for group, data in machine.node.groups.items():
                for register in self._board.registers.get(group, ()):
                    register.saw(register.settled, data.store.get(register.key))
                for (of, _), fact in self._board.facts.items():
                    if of == group:
                        fact.holds(data.store)
                self._board.fact(group, Hashes).take(machine.node, machine.name)
            self._rows_agree(machine, machine.node)
            self._board.leavings.check(machine.name, machine.node)
        for group in self._board.registers:
            told, dropped = self._board.acknowledged(group), group in self._board.dropped
            self._board.changes.acknowledged(group, told, dropped=dropped)
        for fact in self._board.facts.values():
            fact.check()
            if isinstance(fact, History):
                self._core.report.undecided += fact.undecided

    def _rows_agree(self, machine: Machine, node: Node) -> None:
        """What `nebulad verify` finds wrong in a node's data: nothing."""
        for group, replica in node.host.replicas.items():
            wrong = list(verify_rows(node.data, GroupId(group), Generation(replica.generation)))
            require(not wrong, f"group {group} on {machine.name}: {wrong}")

"""One seed: a cluster, its clients, what befalls it, and how it recovers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from nebuladb.env import probe
from nebuladb.errors import NebulaError
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP
from nebuladb.kv.answer import Answer, HashResult
from nebuladb.kv.command import Command, Kind
from nebuladb.sim.actor import Actor
from nebuladb.sim.ambush import Ambush
from nebuladb.sim.board import Board
from nebuladb.sim.core import Core
from nebuladb.sim.disk import Disk
from nebuladb.sim.faults import Faults
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.invariants.replicas import Replicas
from nebuladb.sim.knobs import small_bounds
from nebuladb.sim.links import Links
from nebuladb.sim.nemesis import Nemesis
from nebuladb.sim.network import Network
from nebuladb.sim.place import Place
from nebuladb.sim.population import draw, draw_one, populate
from nebuladb.sim.recovery import Recovery
from nebuladb.sim.report import Report
from nebuladb.sim.trace import Trace
from nebuladb.sim.violation import Violation, raised_in
from nebuladb.sim.workloads.declarer import Declarer
from nebuladb.sim.workloads.keyspaces import Maker
from nebuladb.sim.workloads.steward import Steward

START_MS: Final = 500
"""Nodes of a new cluster start within this time."""
FIVE: Final = 8
"""One cluster in so many has five nodes, the others three: two may be lost, and who commits isn't all but one."""
SPARES: Final = 2
"""Machines on which new nodes may start, if there are any."""
HASH_EVERY_MS: Final = 1_500
NEVER: Final = 1 << 62


class Variant(Enum):
    """The product as it is, or the world broken on purpose, for the self-test."""

    NONE = "none"
    LYING_DISK = "acknowledged before durable"
    STALE_READS = "reads without a round"


@dataclass(slots=True)
class Result:
    """Of one seed; `violation` is empty if all went well."""

    seed: int
    report: Report
    trace: str
    violation: str = ""
    oracle: str = ""
    """What raised it: a module of the simulator, or the product's own error and where it came from."""
    without: tuple[str, ...] = ()
    """Faults and clients that were left out (`shrink`), and `seconds`: what a replay has to say."""
    seconds: float = 0.0


class World:
    """`seconds` of virtual time under faults; then recovery. Of so many `nodes`; 0: as the seed draws."""

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 0,
        seconds: float = 5.0,
        variant: Variant = Variant.NONE,
        without: Collection[str] = (),
        show: Callable[[str], None] | None = None,
    ) -> None:
        faults = Faults.draw(Random(f"{seed} faults")).without(without)
        self.core = core = Core(seed, faults, Trace(show))
        core.note("faults", "", faults)
        nodes = nodes or (3 if core.stream("size").randrange(FIVE) else 5)
        self._without = without
        self._milliseconds = int(seconds * 1_000)
        members = {f"n{place + 1}": f"n{place + 1}:2" for place in range(nodes)}
        if faults.members_every:
            nodes += SPARES
        logs, changes = Logs(), Changes()
        self._replicas = Replicas(logs, changes, core.floors)
        self._network = Network(core, self._deliver, nodes)
        self.machines = [
            Place(
                core,
                place,
                members,
                Disk(core, place, logs, lying=variant is Variant.LYING_DISK),
                logs,
                self._replicas,
                self._send,
                self._neighbour,
                stale_reads=variant is Variant.STALE_READS,
            )
            for place in range(nodes)
        ]
        self._recovers = False
        self._places: dict[int, int] = {}
        """Node id → place."""
        self._linked: dict[tuple[int, int], int] = {}
        """(place, that of a peer) → the node id to which its last link stood: a wiped peer comes with another one."""
        links = Links(core, self._network, nodes, self._incarnation, self._up, self._down)
        self._nemesis = Nemesis(core, self.machines, self._network, links)
        ambush = Ambush(core, self.machines, self._network)
        self._replicas.stood, self._replicas.halved = ambush.stood, ambush.halved
        rng = core.stream("world")
        for machine in self.machines:
            machine.died = self._nemesis.died
            core.scheduler.after(rng.randrange(START_MS), machine.start)
        self._board = Board(changes)
        self.clients: list[Actor] = []
        for group in (DEFAULT_GROUP, ETCD_GROUP):
            self._populate(group, draw(core.stream(f"workloads {group}")))
        if faults.keyspaces:
            self.clients.append(Maker(core, self.machines, self._board, "maker", self._made, self._dropped))
        if faults.alarms_every:
            self.clients.append(Declarer(core, self.machines, self._board, "declarer"))
        if faults.members_every:
            self.clients.append(Steward(core, self.machines, self._board, "steward", self._replicas.removable))
        self._rng = rng
        core.scheduler.after(HASH_EVERY_MS, self._ask_hash)

    def _populate(self, group: int, workloads: Sequence[str]) -> None:
        self.core.note("workloads", "", (group, workloads))
        self.clients += populate(self.core, self.machines, self._board, group, workloads, self._without)

    def _made(self, group: int) -> None:
        """A user's keyspace is ready, `group` one of its shards: somebody uses it."""
        if self.core.faults is self.core.drawn:  # not any more while the cluster recovers
            self._populate(group, draw_one(self.core.stream(f"workloads {group}")))

    def _dropped(self, group: int) -> None:
        self._board.dropped.add(group)
        for client in self.clients:
            if client.group == group:
                client.stopped = True

    def run(self) -> Result:
        """Run it to its end."""
        core = self.core
        violation = oracle = ""
        before = probe.hits.copy()
        with small_bounds(core.stream("knobs"), core.drawn.ambush):
            try:
                self._run()
            except Violation as error:
                violation, oracle = str(error), raised_in(error)
            except Exception as error:  # the product gave up: an invariant of its own, or a bug
                oracle = f"{type(error).__name__} in {raised_in(error)}"
                violation = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        for machine in self.machines:
            machine.close()
        report = core.report
        report.steps = core.scheduler.steps
        report.leader_changes = self._replicas.leader_changes
        report.sim_seconds = core.scheduler.now / 1_000
        report.probes = probe.hits - before
        if core.drawn.crash_every:
            report.ops_killed = report.ops_ok + report.ops_failed + report.ops_unknown
            report.unknown_killed = report.ops_unknown
        report.violations = int(bool(violation))
        without = tuple(sorted(self._without))
        return Result(core.seed, report, core.trace.digest(), violation, oracle, without, self._milliseconds / 1_000)

    def _run(self) -> None:
        scheduler = self.core.scheduler
        scheduler.run(self._milliseconds)
        self.core.note("mend")
        self.core.faults = Faults()
        self._nemesis.stop()
        self._recovers = True
        recovery = Recovery(self.core, self.machines, self.clients, self._board)
        while not recovery.done:
            scheduler.run(NEVER)

    def _ask_hash(self) -> None:
        """A HASH through any node: every replica will compare its state at that index. Not while recovery waits for
        hashes of its own: a node that does little at a time drops one for the next."""
        if self._recovers:
            return
        group = self._rng.choice((DEFAULT_GROUP, ETCD_GROUP))

        def answered(outcome: Answer | NebulaError) -> None:
            if isinstance(outcome, Answer) and isinstance(outcome.result, HashResult):
                self._replicas.hash_asked(group, outcome.result.index)

        try:
            self._rng.choice(self.machines).submit(group, Command(Kind.HASH, b""), HASH_EVERY_MS, answered)
        except NebulaError as error:
            answered(error)
        self.core.scheduler.after(self._rng.randrange(2 * HASH_EVERY_MS), self._ask_hash)

    # --- between machines: node ids there, places here ---------------------------------------------------------------

    def _send(self, place: int, node: int, frame: bytes) -> None:
        receiver = self._places.get(node)
        if receiver is None or self.machines[receiver].node_id != node:  # a new machine, or one that was emptied
            self._places = {machine.node_id: machine.place for machine in self.machines}
            receiver = self._places.get(node)
        if receiver is not None:
            self._network.send(place, receiver, frame)

    def _deliver(self, receiver: int, sender: int, frame: bytes) -> None:
        self.machines[receiver].receive(self.machines[sender].node_id, frame)

    def _neighbour(self, place: int, name: str) -> Place | None:
        """Whom a fresh node asks, if it gets through."""
        peer = next(machine for machine in self.machines if machine.name == name)
        return peer if self._network.talks(place, peer.place) else None

    def _incarnation(self, place: int) -> int:
        return self.machines[place].incarnation

    def _up(self, place: int, peer: int, incarnation: int) -> None:
        self.core.note("up", f"n{place + 1}", peer + 1)
        node = self._linked[place, peer] = self.machines[peer].node_id
        self.machines[place].peer_up(node, incarnation)

    def _down(self, place: int, peer: int) -> None:
        self.core.note("down", f"n{place + 1}", peer + 1)
        self.machines[place].peer_down(self._linked[place, peer])

"""A few `Node`s with disks in memory, on one clock, whose frames arrive at once; nodes can be down, and crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Self

from nebuladb.errors import NebulaError, NodeRemoved
from nebuladb.ids import META_GROUP
from nebuladb.kv.answer import Answer, TxnResult
from nebuladb.kv.command import Command, Kind
from nebuladb.node.frame import Envelope
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.members import claim_step, find
from nebuladb.node.meta import Meta
from nebuladb.node.node import Node
from nebuladb.node.options import NodeOptions
from nebuladb.node.record import NodeState
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.raft import StateRole
from nebuladb.shard import Descriptor
from nebuladb.storage.log import LogStore
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.wire import decode_frame

TICK_MS = 50
PATIENCE_MS = 30_000


class Machine:
    """One node's disks, and the node while it runs."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.log = MemoryEngine(wal=True)
        self.data = MemoryEngine(wal=False)
        self.node: Node | None = None
        self.lives = 0
        self.joined: Descriptor | None = None
        self.removed = ""
        """What it was told when it stopped because it is no member any more."""
        self.answers: dict[int, Answer | NebulaError] = {}
        self.served: set[int] = set()
        """Linearizable reads that could be served."""
        self.written = 0
        """The newest batch that is not synced."""


class Trio:
    """Invariant: whoever runs is connected to all others that run."""

    def __init__(self, count: int = 3, seed: int = 1, options: NodeOptions | None = None) -> None:
        self._options = options
        self.founding = Founding(7, tuple(Founder(f"n{i + 1}", 11 + i, f"n{i + 1}:2") for i in range(count)))
        self.machines = [Machine(place) for place in range(count)]
        self.who = list(self.founding.nodes)
        """By place; those behind the founders have joined."""
        self.time = 1_000
        self._seed = seed
        self._rng = random.Random(seed)
        self.hung: set[int] = set()
        """Places whose process does nothing, while its links stand."""
        self.unflushed: set[int] = set()
        """Places whose data store isn't flushed when that is wanted."""
        self.unsynced: set[int] = set()
        """Places whose disk takes writes and doesn't make them durable."""
        self.lose: Callable[[int, int, bytes], bool] = lambda sender, receiver, frame: False
        """Whether a frame is lost; node ids."""
        self.sent: list[Envelope] = []
        """Messages that arrived."""

    @classmethod
    def started(cls, count: int = 3, options: NodeOptions | None = None) -> Self:
        """All nodes run, have founded their cluster, and each group has a leader."""
        trio = cls(count, options=options)
        trio.start()
        trio.founded()
        return trio

    def monotonic(self) -> int:
        return self.time

    def boottime(self) -> int:
        return self.time

    # --- life and death

    def start(self, *places: int) -> None:
        for place in places or range(len(self.machines)):
            machine = self.machines[place]
            machine.lives += 1
            founder = self.who[place]
            incarnation = 100 * (place + 1) + machine.lives
            machine.node = Node(
                Identity(founder.node, founder.name, 7), self.founding, incarnation, LogStore(machine.log),
                machine.data, random.Random(self._seed * 1_000 + incarnation), self, founder.name, founder.peer_address,
                options=self._options, joined=machine.joined,
            )  # fmt: skip
            for other in self.running:
                if other is not machine:
                    assert other.node is not None
                    other.node.host.peer_up(founder.node, incarnation)
                    machine.node.host.peer_up(other.node.identity.node, other.node.host.incarnation)

    def crash(self, *places: int) -> None:
        """The process dies and the machine loses what was not synced or flushed."""
        for place in places:
            machine = self.machines[place]
            machine.node, machine.written = None, 0
            machine.log = machine.log.crash(self._rng)
            machine.data = machine.data.crash(self._rng)
            for other in self.running:
                assert other.node is not None
                other.node.host.peer_down(self.who[place].node)

    def join(self, name: str, through: int = 0) -> int:
        """A new machine, started as `nebulad start --join` would: it has claimed its id, and knows the meta group. Its
        place."""
        place = len(self.machines)
        self.machines.append(Machine(place))
        node, claim, address = 11 + place, 1_000 + place, f"{name}:2"
        self.drive(through, lambda meta: claim_step(meta, name, address, claim, node))
        record = find(self.node(through).meta, name)
        assert record is not None
        self.who.append(Founder(name, record.node, address))

        def listed() -> bool:
            own = self.node(through).meta.own
            return own is not None and record.node in dict(own.replicas).values()

        self.until(listed, "the new node has a replica of meta")
        self.machines[place].joined = self.node(through).meta.own
        self.start(place)
        return place

    def state(self, place: int, through: int = 0) -> NodeState:
        """How far a node is, as another one sees it."""
        meta, node = self.node(through).meta, self.who[place].node
        return (meta.nodes.get(node) or meta.removed[node]).state

    @property
    def running(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.node is not None]

    def node(self, place: int) -> Node:
        node = self.machines[place].node
        assert node is not None
        return node

    @property
    def acting(self) -> list[Machine]:
        return [machine for machine in self.running if machine.place not in self.hung]

    # --- time

    def settle(self, rounds: int = 40) -> None:
        """Turns until nothing more happens at this instant."""
        for _ in range(rounds):
            busy = False
            for machine in self.acting:
                assert machine.node is not None
                try:
                    turn = machine.node.turn()
                except NodeRemoved as error:
                    machine.removed = error.message
                    self.crash(machine.place)
                    continue
                busy |= turn.more or bool(turn.frames) or bool(turn.written)
                machine.answers.update(turn.answers)
                machine.served.update(number for number, error in turn.reads if error is None)
                for outgoing in turn.exports:
                    machine.node.snapshots.sender.chunk_read(outgoing, outgoing.exporter.read())
                    busy = True
                if machine.node.flush_wanted and machine.place not in self.unflushed:
                    self.flush(machine.place)
                    busy = True
                machine.written = max(machine.written, turn.written)
                if machine.written and machine.place not in self.unsynced:
                    machine.node.log.sync()
                    machine.node.host.durable(machine.written)
                    machine.written = 0
                for to, frame in turn.frames:
                    for other in self.acting:
                        sender = machine.node.identity.node
                        if (
                            other.node is not None
                            and other.node.identity.node == to
                            and not self.lose(sender, to, frame)
                        ):
                            self.sent += decode_frame(frame)[1]
                            other.node.host.receive(sender, frame)
            if not busy:
                return

    def flush(self, place: int) -> None:
        """Flush a node's data store."""
        node = self.node(place)
        flush = node.begin_flush()
        node.data.flush()
        node.end_flush(flush)

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds // TICK_MS):
            self.time += TICK_MS
            for machine in self.acting:
                assert machine.node is not None
                machine.node.tick(self.time, self.time)
            self.settle()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(PATIENCE_MS // TICK_MS):
            if condition():
                return
            self.run(TICK_MS)
        raise AssertionError(f"never: {what}")

    # --- what tests look at

    def leader(self, group: int) -> int | None:
        """The place that leads `group`."""
        leading = [
            (replica.raft.term, machine.place)
            for machine in self.acting
            if machine.node is not None
            and (replica := machine.node.host.replicas.get(group)) is not None
            and replica.raft.role is StateRole.LEADER
        ]
        return max(leading)[1] if leading else None

    def founded(self) -> None:
        self.until(lambda: all(m.node is not None and m.node.meta.version for m in self.running), "founded")
        self.until(lambda: all(self.leader(group) is not None for group in (1, 2, 3)), "leaders")

    def step(self, place: int, transaction: bytes) -> bool:
        """Run a transaction on the meta group through a node; whether its compares held."""
        machine = self.machines[place]
        request = self.node(place).submit(META_GROUP, Command(Kind.TXN, transaction), self.time + 20_000)
        self.until(lambda: request in machine.answers, "an answer")
        answer = machine.answers[request]
        assert isinstance(answer, Answer), answer
        assert isinstance(answer.result, TxnResult), answer
        return answer.result.succeeded

    def drive(self, place: int, step_of: Callable[[Meta], bytes | None]) -> int:
        """Step by step until there is none, as the node's service does; how many steps."""
        count = 0
        while (step := step_of(self.node(place).meta)) is not None:
            self.step(place, step)
            count += 1
        return count

    def registry(self, place: int) -> dict[int, RegistryRow]:
        """What is in the log's database."""
        return {int(group): RegistryRow.decode(row) for group, row in self.node(place).log.registry().items()}

    def normal(self, place: int) -> list[int]:
        return [group for group, row in self.registry(place).items() if row.state == GroupState.NORMAL]

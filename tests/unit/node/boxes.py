"""A few `Host`s of one group in memory, driven through the boundary and nothing else; frames wait until delivered."""

from __future__ import annotations

import random
from collections.abc import Callable

from nebuladb.errors import NebulaError
from nebuladb.ids import BatchId, Generation, GroupId, NodeId
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.node.entry import encode_command
from nebuladb.node.host import Host
from nebuladb.node.output import Request
from nebuladb.node.replica import Replica, Start
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.raft import Configuration, StateRole
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import LogBatch
from nebuladb.storage.memory import MemoryEngine

CLUSTER = 7
GROUP = 2
TICK_MS = 50
MAX_ROUNDS = 200
QUIET_ROUNDS = 5


class Box:
    """One host with its disk, which syncs at once unless `hung`."""

    def __init__(self, place: int, count: int) -> None:
        self.place = place
        self.node = 11 + place
        self.nodes = {replica + 1: 11 + replica for replica in range(count)}
        self.data = MemoryEngine(wal=False)
        self.log = LogStore(MemoryEngine(wal=True))
        first = LogBatch(BatchId(1))
        first.create(GroupId(GROUP), 1, 1)
        self.log.write(first, BatchId(0))
        configuration = Configuration(tuple(sorted(self.nodes)))
        Store.initialise(
            self.data, GroupId(GROUP), Generation(1), index=1, term=1, configuration=configuration.encode()
        )
        self.incarnation = 100 * (place + 1)
        self.start()

    def start(self) -> None:
        """A new life from what is on the disk."""
        self.incarnation += 1
        self.hung = False
        self.unsynced = 0
        self.snapshots: list[tuple[int, int]] = []
        self.answers: dict[int, Answer | NebulaError] = {}
        self.reads: dict[int, NebulaError | None] = {}
        self.host = Host(CLUSTER, self.node, self.incarnation, self.log.last_batch + 1, random.Random(self.incarnation))
        self.store = Store(self.data, GroupId(GROUP), Generation(1), NodeId(self.node))
        configuration = Configuration.decode(self.store.configuration)
        self._add(GROUP, self.place + 1, self.nodes, configuration, self.store.index, self.store.clock)

    def _add(
        self, group: int, replica: int, nodes: dict[int, int], configuration: Configuration, applied: int, clock: int
    ) -> None:
        self.host.add_group(
            Start(
                group=group,
                replica=replica,
                generation=1,
                nodes=nodes,
                configuration=configuration,
                configuration_index=applied,
                hard_state=self.log.hard_state(GroupId(group)),
                log=self.log.reader(GroupId(group)),
                applied=applied,
                durably_applied=applied,
                clock=clock,
                leases=[],
            )
        )

    @property
    def replica(self) -> Replica:
        return self.host.replicas[GROUP]

    @property
    def leads(self) -> bool:
        return self.replica.raft.role is StateRole.LEADER

    @property
    def log_start(self) -> tuple[int, int]:
        """As the disk has it."""
        return self.log.reader(GroupId(GROUP)).start()

    def put(self, request: int, key: bytes = b"k", deadline: int = 1 << 40, size: int = 1, group: int = GROUP) -> None:
        """A client's put."""
        body = kv_pb2.PutRequest(key=key, value=bytes(size)).SerializeToString()
        command = Command(Kind.PUT, body, origin=self.node, request=request)
        self.host.request(Request(request, group, encode_command(command), deadline))

    def more_groups(self, count: int) -> list[int]:
        """Further groups on this node alone, whose logs are written and which nobody applies."""
        groups = list(range(GROUP + 1, GROUP + 1 + count))
        batch = LogBatch(BatchId(self.log.last_batch + 1))
        for group in groups:
            batch.create(GroupId(group), 1, 1)
        self.log.write(batch, BatchId(0))
        self.start()
        for group in groups:
            self._add(group, 1, {1: self.node}, Configuration((1,)), 1, 0)
        return groups

    def turn(self) -> list[tuple[int, bytes]]:
        """What a pump does with an `Output`; returns the frames."""
        output = self.host.poll()
        if output.batch is not None:
            self.log.write(output.batch, self.host.batches.durable)
            self.unsynced = output.batch.id
        for work in output.slices:
            if work.group != GROUP:
                continue
            applied = self.store.apply(work.works)
            self.host.applied(work.group, work.generation, applied)
        self.answers.update(output.answers)
        self.reads.update(output.reads)
        self.snapshots += output.snapshots
        if self.unsynced and not self.hung:
            self.log.sync()
            self.host.durable(self.unsynced)
            self.unsynced = 0
        return output.frames

    def outcome(self, request: int) -> str:
        """Class of what the client was told; empty while it waits."""
        found = self.answers.get(request)
        return type(found).__name__ if found is not None else ""


class Boxes:
    """`flight`: frames under way as (from, to, frame). `lose`: which of them never arrive."""

    def __init__(self, count: int = 3) -> None:
        self.time = 1_000
        self.boxes = [Box(place, count) for place in range(count)]
        self.flight: list[tuple[Box, Box, bytes]] = []
        self.lose: Callable[[Box, Box], bool] = lambda source, target: False
        for one in self.boxes:
            for other in self.boxes:
                if one is not other:
                    one.host.peer_up(other.node, other.incarnation)

    def collect(self, box: Box) -> None:
        """One turn of one box; what it sends goes into flight."""
        for node, frame in box.turn():
            target = self.boxes[node - 11]
            if not self.lose(box, target):
                self.flight.append((box, target, frame))

    def deliver(self) -> bool:
        """What is in flight arrives; whether there was anything."""
        flight, self.flight = self.flight, []
        for source, target, frame in flight:
            target.host.receive(source.node, frame)
        return bool(flight)

    def settle(self) -> None:
        """Turns and deliveries until all is quiet."""
        quiet = 0
        for _ in range(MAX_ROUNDS):
            for box in self.boxes:
                self.collect(box)
            quiet = 0 if self.deliver() else quiet + 1
            if quiet == QUIET_ROUNDS:
                return

    def tick(self, *boxes: Box, count: int = 1) -> None:
        """Time passes for `boxes`, or for all."""
        for _ in range(count):
            self.time += TICK_MS
            for box in boxes or self.boxes:
                box.host.tick(self.time, self.time)
            self.settle()

    def elect(self, box: Box) -> None:
        """Let time pass for `box` alone until it leads, and then for all until everyone knows."""
        for _ in range(MAX_ROUNDS):
            if box.leads:
                break
            self.tick(box)
        assert box.leads
        self.tick(count=4)

    def restart(self, box: Box) -> None:
        """The process of `box` ends and another begins; the links stand again."""
        box.start()
        for other in self.boxes:
            if other is not box:
                other.host.peer_up(box.node, box.incarnation)
                box.host.peer_up(other.node, other.incarnation)

"""How a node starts: by the clock, through write stalls, with a full log batch. Each was broken once (simulator)."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest

from nebuladb.errors import Corruption, IdentityError, InvariantViolation
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP, Generation, GroupId
from nebuladb.kv.answer import Answer, LeaseResult
from nebuladb.kv.cache import RecordShare
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.rows import Keys
from nebuladb.kv.state import State
from nebuladb.kv.store import Store
from nebuladb.node import batches
from nebuladb.node.identity import Founder, Founding, Identity
from nebuladb.node.node import Node
from nebuladb.node.options import NodeOptions
from nebuladb.node.registry import RegistryRow
from nebuladb.node.starting import open_replica, read_state
from nebuladb.node.tail import TailLimits
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.storage.engine import Batch
from nebuladb.storage.log import LogStore
from nebuladb.storage.memory import Fault, MemoryEngine
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

FOUNDING = Founding(7, (Founder("n1", 11, "n1:2"),))
UPTIME_MS = 10**9


class Alone:
    """A cluster of one node, whose disk syncs at once; it runs until all three groups answer."""

    def __init__(self, log: MemoryEngine, data: MemoryEngine, uptime: int, node: int = 11) -> None:
        self.time = uptime
        self.node = Node(Identity(node, "n1", 7), FOUNDING, 5, LogStore(log), data, random.Random(1), self)
        self.answers: list[object] = []

    def monotonic(self) -> int:
        return self.time

    def boottime(self) -> int:
        return self.time

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds // 50):
            self.time += 50
            self.node.tick(self.time, self.time)
            for _ in range(10):
                turn = self.node.turn()
                self.answers += [outcome for _, outcome in turn.answers]
                if turn.written:
                    self.node.log.sync()
                    self.node.host.durable(turn.written)


def test_before_the_first_replica_runs_whoever_keeps_the_directory_is_told_and_never_again() -> None:
    """A vote can't be given before it is on the disk that there may be votes (S15)."""
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    alone, told = Alone(log, data, 1000), []
    alone.node.on_first_start = lambda: told.append((dict(LogStore(log).registry()), dict(alone.node.host.replicas)))
    alone.run(5_000)
    ((rows, replicas),) = told
    assert list(rows) == [META_GROUP]
    assert not replicas
    again = Alone(log, data, UPTIME_MS)
    again.node.on_first_start = lambda: told.append(({}, {}))
    again.run(5_000)
    assert len(told) == 1


def test_the_leader_of_meta_names_the_clusters_life_once() -> None:
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    alone = Alone(log, data, 1000)
    alone.run(5_000)
    life = alone.node.meta.life
    revision = alone.node.groups[META_GROUP].store.revision
    assert life
    alone.run(5_000)
    assert (alone.node.meta.life, alone.node.groups[META_GROUP].store.revision) == (life, revision)


def test_a_restart_does_not_move_the_lease_clock_by_the_machines_uptime() -> None:
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    alone = Alone(log, data, 1000)
    alone.run(5_000)
    grant = lease_pb2.LeaseGrantRequest(id=9, ttl=30).SerializeToString()
    alone.node.submit(DEFAULT_GROUP, Command(Kind.LEASE_GRANT, grant), alone.time + 1_000)
    alone.run(1_000)
    assert isinstance(alone.answers[-1], Answer)
    assert alone.answers[-1].result == LeaseResult(9, 30)
    again = Alone(log, data, UPTIME_MS)
    again.run(5_000)
    lease = again.node.groups[DEFAULT_GROUP].store.lease(9)
    assert lease is not None
    assert 20 <= lease.remaining <= 30


def test_a_group_whose_first_write_stalls_starts_a_little_later() -> None:
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    alone = Alone(log, data, 1000)
    data.fail(Fault.STALL, 7)
    alone.run(5_000)
    assert sorted(alone.node.groups) == [META_GROUP, DEFAULT_GROUP, ETCD_GROUP]


def test_a_node_starts_while_its_data_store_takes_no_writes() -> None:
    """With too many tables to compact it takes none for a while, and each start ended with "Write stall" where an
    unfinished snapshot was to be removed, or a group's first rows were lost, long before that was over."""
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    Alone(log, data, 1000).run(5_000)
    Store.destroy(data, GroupId(DEFAULT_GROUP), Generation(1))
    Store.destroy(data, GroupId(META_GROUP), Generation(1))
    Store.initialise(data, GroupId(ETCD_GROUP), Generation(256), index=1, term=1, configuration=b"")
    data.fail(Fault.STALL, 20)
    alone = Alone(log, data, UPTIME_MS)
    assert sorted(alone.node.host.replicas) == [ETCD_GROUP]
    assert alone.node.snapshots._generation(ETCD_GROUP, 1) > 256, "what is to be removed is not what comes in next"
    alone.run(5_000)
    assert sorted(alone.node.groups) == [META_GROUP, DEFAULT_GROUP, ETCD_GROUP]
    assert sorted(alone.node.meta.keyspaces) == ["default", "etcd"]
    assert Store.generations(data) == [(group, 1) for group in (META_GROUP, DEFAULT_GROUP, ETCD_GROUP)]


def test_a_group_has_no_data_before_its_registry_row_is_durable() -> None:
    """Flushed data behind a lost row looked like a node that forgot its votes, and it never started again."""
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    alone = Alone(log, data, 1000)
    turn = alone.node.turn()
    while not turn.written:
        turn = alone.node.turn()
    for _ in range(3):
        assert not alone.node.turn().more  # it waits for the disk, and doesn't spin
    data.flush()
    # The power fails: nothing of the log was synced yet.
    again = Alone(MemoryEngine(wal=True), data.crash(random.Random(1)), UPTIME_MS)
    again.run(5_000)
    assert sorted(again.node.groups) == [META_GROUP, DEFAULT_GROUP, ETCD_GROUP]


def test_a_full_log_batch_asks_for_another_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone(MemoryEngine(wal=True), MemoryEngine(wal=False), 1000)
    alone.run(5_000)
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 1)
    for group in (DEFAULT_GROUP, ETCD_GROUP):
        alone.node.submit(group, Command(Kind.HASH, b""), alone.time + 1_000)
    first = alone.node.turn()
    assert first.written
    assert first.more
    alone.node.host.durable(first.written)
    second = alone.node.turn()
    assert second.written == first.written + 1


def test_data_without_its_log_is_not_a_fresh_node() -> None:
    """With the log the registry is gone, and every vote: started afresh, it would vote again (S15)."""
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    Alone(log, data, 1000).run(5_000)
    with pytest.raises(Corruption, match="member replace"):
        Alone(MemoryEngine(wal=True), data, 1000)


def test_a_log_of_another_node_is_refused_and_no_data_touched() -> None:
    """Two directories' databases were swapped: each node got messages for the replica that it wasn't, and none led."""
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    Alone(log, data, 1000).run(5_000)
    before = list(data.scan(b"", b"\xff"))
    with pytest.raises(IdentityError, match=r"raft/ is of node 0*b, and this is 0*c"):
        Alone(log, data, UPTIME_MS, node=12)
    assert list(data.scan(b"", b"\xff")) == before
    Alone(log, data, UPTIME_MS)


def test_a_log_that_is_older_than_the_data_is_refused_and_the_text_says_what_to_do() -> None:
    """Its directory alone was put back from a copy (S15)."""
    log, data = MemoryEngine(wal=True), MemoryEngine(wal=False)
    alone = Alone(log, data, 1000)
    alone.run(5_000)
    older = deepcopy(log)
    alone.node.submit(DEFAULT_GROUP, Command(Kind.HASH, b""), alone.time + 1_000)
    alone.run(1_000)
    with pytest.raises(InvariantViolation, match=r"put back from an older copy.*member replace"):
        Alone(older, data, UPTIME_MS)


def test_a_node_alone_without_data_says_that_it_needs_a_backup() -> None:
    """Nobody could send it the snapshot that it said it waits for."""
    trio = Trio.started(1, options=NodeOptions(tail=TailLimits(entries=5, cut_entries=2)))
    for number in range(40):
        put = Command(Kind.PUT, put_request(b"%04d" % number, b"v"))
        trio.node(0).submit(DEFAULT_GROUP, put, trio.time + 20_000)
        trio.run(50)
    for _ in range(3):
        trio.flush(0)
        trio.run(1_500)
    trio.crash(0)
    trio.machines[0].data = MemoryEngine(wal=False)
    trio.start(0)
    assert trio.node(0).host.replicas[DEFAULT_GROUP].lost
    assert any("no other node has it: restore a backup" in text for text in trio.node(0).alarms())


def test_a_configuration_that_cannot_be_read_is_damage_of_the_data() -> None:
    """`nebulad verify` called it whole, and the node gave up where a snapshot would have mended it (simulator)."""
    alone = Alone(MemoryEngine(wal=True), MemoryEngine(wal=False), UPTIME_MS)
    alone.run(3000)
    node = alone.node
    registry = RegistryRow.decode(node.log.registry()[GroupId(DEFAULT_GROUP)])
    name, generation = GroupId(DEFAULT_GROUP), Generation(registry.generation)
    row = Keys(name, generation).state
    whole = node.data.get(row)
    assert whole is not None
    assert read_state(node.data, name, generation) == State.decode(whole)
    for length in range(len(whole)):
        cut = Batch()
        cut.put(row, whole[:length])
        node.data.write(cut)
        with pytest.raises(Corruption):
            read_state(node.data, name, generation)
    start, store = open_replica(DEFAULT_GROUP, registry, node.log, node.data, 11, RecordShare(0))
    assert (start.lost, store.revision) == (True, 1)

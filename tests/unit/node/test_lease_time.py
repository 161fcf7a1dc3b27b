"""Lease time is read when an entry is made or handed out, not at the last tick: the process may have slept (S27)."""

from __future__ import annotations

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.entry import encode_command, encode_payload
from nebuladb.node.replica import Replica
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.test_start import Alone

SLEEP_MS = 60_000


def ready() -> Alone:
    alone = Alone(MemoryEngine(wal=True), MemoryEngine(wal=False), 1000)
    alone.run(5_000)
    return alone


def replica(alone: Alone) -> Replica:
    return alone.node.host.replicas[DEFAULT_GROUP]


def grant(alone: Alone, ttl: int) -> None:
    body = lease_pb2.LeaseGrantRequest(id=9, ttl=ttl).SerializeToString()
    alone.node.submit(DEFAULT_GROUP, Command(Kind.LEASE_GRANT, body), alone.time + 1_000)


def work(alone: Alone) -> None:
    """Turns without a tick: what a process does first when it wakes up from a long sleep (S12)."""
    for _ in range(10):
        turn = alone.node.turn()
        if turn.written:
            alone.node.log.sync()
            alone.node.host.durable(turn.written)


def test_a_keep_alive_that_comes_before_the_first_tick_after_a_sleep_lasts_its_whole_time() -> None:
    alone = ready()
    grant(alone, ttl=SLEEP_MS // 1_000 + 10)
    alone.run(1_000)
    alone.time += SLEEP_MS
    body = lease_pb2.LeaseKeepAliveRequest(id=9).SerializeToString()
    alone.node.submit(DEFAULT_GROUP, Command(Kind.LEASE_KEEP_ALIVE, body), alone.time + 1_000)
    work(alone)
    alone.run(SLEEP_MS)
    assert alone.node.groups[DEFAULT_GROUP].store.lease(9) is not None


def test_a_grant_that_comes_before_the_first_tick_after_a_sleep_lasts_its_whole_time() -> None:
    alone = ready()
    alone.time += SLEEP_MS
    grant(alone, ttl=30)
    work(alone)
    alone.run(29_000)
    assert alone.node.groups[DEFAULT_GROUP].store.lease(9) is not None
    alone.run(3_000)
    assert alone.node.groups[DEFAULT_GROUP].store.lease(9) is None


def test_a_clock_seen_after_a_sleep_does_not_run_ahead_by_it() -> None:
    """A follower slept; the leader's entries come before the first tick. It may lead next, and expire by its clock."""
    alone = ready()
    lessor = replica(alone).lessor
    alone.time += SLEEP_MS
    seen = lessor.clock(alone.time) + 5_000
    replica(alone).raft.propose(encode_payload(seen, [encode_command(Command(Kind.CLOCK, b""))]))
    alone.node.read(DEFAULT_GROUP, alone.time + 1_000)  # so that the group is looked at
    work(alone)
    assert alone.node.groups[DEFAULT_GROUP].store.clock == seen
    alone.node.tick(alone.time, alone.time)
    assert lessor.clock(alone.time) == seen

"""Lease time is read when an entry is made or handed out, not at the last tick: the process may have slept (S27).

What it demands of a leader isn't lost where the log takes nothing for a while.
"""

from __future__ import annotations

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.entry import encode_command, encode_payload
from nebuladb.node.replica import Replica
from nebuladb.pb.nebula.v1 import lease_pb2
from nebuladb.raft import MessageType
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.test_start import Alone
from tests.unit.node.trio import TICK_MS, Trio
from tests.unit.node.wire import decode_frame

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


def test_a_lease_that_is_over_while_leadership_is_handed_over_ends_as_soon_as_that_has_failed() -> None:
    trio = Trio.started()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    node = trio.node(leader)
    store, raft = node.groups[DEFAULT_GROUP].store, node.host.replicas[DEFAULT_GROUP].raft
    body = lease_pb2.LeaseGrantRequest(id=9, ttl=2).SerializeToString()
    node.submit(DEFAULT_GROUP, Command(Kind.LEASE_GRANT, body), trio.time + 1_000)
    trio.until(lambda: store.lease(9) is not None, "granted")
    trio.run(2_000 - 4 * TICK_MS)
    trio.lose = lambda sender, receiver, frame: any(
        envelope.message.type == MessageType.TIMEOUT_NOW for envelope in decode_frame(frame)[1]
    )
    node.host.transfer_leadership(DEFAULT_GROUP, trio.who[(leader + 1) % 3].node)
    trio.run(8 * TICK_MS)
    assert store.lease(9) is not None, "nothing is proposed meanwhile"
    assert raft.transferee
    trio.until(lambda: not raft.transferee, "given up")
    trio.run(2 * TICK_MS)
    assert store.lease(9) is None

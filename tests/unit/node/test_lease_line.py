"""A new leader goes on from the lease clock of the leader before it, be its own ahead (S27)."""

from __future__ import annotations

import random

from nebuladb.ids import BatchId, GroupId
from nebuladb.kv.command import Command, Kind
from nebuladb.node.entry import encode_command, encode_payload
from nebuladb.node.output import Request
from nebuladb.node.replica import Replica, Start
from nebuladb.raft import Configuration, HardState, StateRole
from nebuladb.raft.entry import encode_entry
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.memory import MemoryEngine

GROUP = GroupId(2)
LINE = 5_000
"""Lease clock of the leader before, whose last renewal of lease 7 is not applied here yet."""
NOW = 10_000
"""This node's own line, which began at 0, is there now."""


def new_leader() -> tuple[Replica, LogStore]:
    """Elected alone; it has not applied its predecessor's last entry."""
    log = LogStore(MemoryEngine(wal=True))
    batch = LogBatch(BatchId(1))
    batch.create(GROUP, 1, 1)
    payload = encode_payload(LINE, [encode_command(Command(Kind.CLOCK, b""))])
    batch.write(GroupWrite(GROUP, HardState(1, 0, 1), [encode_entry(2, 1, 0, payload)]))
    log.write(batch, BatchId(0))
    start = Start(
        group=GROUP,
        replica=1,
        generation=1,
        nodes={1: 11},
        configuration=Configuration((1,)),
        configuration_index=1,
        hard_state=log.hard_state(GROUP),
        log=log.reader(GROUP),
        applied=1,
        durably_applied=1,
        clock=0,
        leases=[(7, LINE + 2_000, 2)],
    )
    one = Replica(start, 11, 1, random.Random(1), 0)
    one.raft.campaign()
    assert one.raft.role is StateRole.LEADER or write(one, log)
    return one, log


def write(one: Replica, log: LogStore) -> bool:
    """What Raft wants is written and durable."""
    while (ready := one.raft.ready()) is not None:
        if ready.mark is not None:
            batch = LogBatch(BatchId(log.last_batch + 1))
            batch.write(GroupWrite(GROUP, ready.hard_state, ready.entries))
            log.write(batch, BatchId(0))
            one.raft.durable(ready.mark)
    return one.raft.role is StateRole.LEADER


def test_it_ends_no_lease_by_its_own_clock_and_proposes_none_before_it_knows_theirs() -> None:
    one, log = new_leader()
    one.proposals.add(Request(1, GROUP, encode_command(Command(Kind.PUT, b"")), NOW + 1_000))
    one.tick(NOW)
    last = one.raft.last_index
    assert one.propose(NOW, lambda _: True, 1) == []
    assert one.raft.last_index == last, "an entry would carry a clock that is ahead"
    assert write(one, log)
    taken = one.next_slice(NOW)
    assert taken is not None
    assert [work.term for work in taken.works] == [1, 2]
    assert one.lessor.clock(NOW) == LINE
    one.slice_applied(taken.works[-1].index)
    one.propose(NOW, lambda _: True, 2)
    assert one.raft.last_index == last + 1
    one.tick(NOW + 1_999)
    assert one.lessor.due(NOW + 1_999) == []
    assert one.lessor.due(NOW + 2_000) == [(7, 2)]

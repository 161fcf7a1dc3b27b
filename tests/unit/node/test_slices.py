"""What a store has no room for in one slice isn't decoded again for the next."""

from __future__ import annotations

import random

import pytest

from nebuladb.ids import DEFAULT_GROUP, BatchId, Generation, GroupId
from nebuladb.kv.command import Command, Kind, Work
from nebuladb.kv.rows import Keys
from nebuladb.kv.state import State
from nebuladb.node.entry import encode_command, encode_payload
from nebuladb.node.replica import Replica, Start
from nebuladb.node.starting import open_replica
from nebuladb.raft import Configuration, HardState
from nebuladb.raft.entry import Entry, encode_entry
from nebuladb.storage.engine import Batch
from nebuladb.storage.log import LogStore
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.trio import Trio

GROUP = GroupId(2)
ENTRIES = 100


def replica(committed: int = 1 + ENTRIES, *, partial: bool = False) -> Replica:
    """One whose log holds committed entries that were never applied, as after a restart."""
    log = LogStore(MemoryEngine(wal=True))
    batch = LogBatch(BatchId(1))
    batch.create(GROUP, 1, 1)
    payload = encode_payload(1, [encode_command(Command(Kind.CLOCK, b""))])
    entries = [encode_entry(index, 1, 0, payload) for index in range(2, 2 + ENTRIES)]
    batch.write(GroupWrite(GROUP, HardState(1, 0, committed), entries))
    log.write(batch, BatchId(0))
    start = Start(
        group=GROUP,
        replica=1,
        generation=1,
        nodes={1: 11, 2: 12},
        configuration=Configuration((1, 2)),
        configuration_index=1,
        hard_state=log.hard_state(GROUP),
        log=log.reader(GROUP),
        applied=1,
        durably_applied=1,
        clock=0,
        leases=(),
        partial=partial,
    )
    return Replica(start, 11, 1, random.Random(1), 0)


def test_a_partly_applied_slice_goes_on_with_what_was_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replica()
    decoded: list[int] = []
    decode = Replica._decode

    def count(self: Replica, entry: Entry, boottime: int) -> Work:
        decoded.append(entry.index)
        return decode(self, entry, boottime)

    monkeypatch.setattr(Replica, "_decode", count)
    applied = 1
    while (work := one.next_slice(0)) is not None:
        assert one.next_slice(0) is None  # one is out
        assert work.works[0].index == applied + 1
        applied += 7
        one.slice_applied(min(applied, 1 + ENTRIES))
    assert decoded == list(range(2, 2 + ENTRIES))


def test_a_half_applied_entry_is_given_again() -> None:
    one = replica()
    first = one.next_slice(0)
    one.slice_applied(1)  # entry 2 is half applied
    assert one.next_slice(0) == first


def test_what_is_half_applied_was_committed_whoever_knows() -> None:
    """Who leads by it could send no snapshot of half an entry, and with nobody to commit with would never go on."""
    assert replica(committed=1).next_slice(0) is None
    work = replica(committed=1, partial=True).next_slice(0)
    assert work is not None
    assert [one.index for one in work.works] == [2]


def test_a_store_in_the_midst_of_an_entry_starts_a_replica_that_knows_it() -> None:
    trio = Trio(1)
    trio.start()
    trio.run(6_000)
    node, row = trio.node(0), trio.registry(0)[DEFAULT_GROUP]
    assert not open_replica(DEFAULT_GROUP, row, node.log, node.data, 11, node.records)[0].partial
    keys = Keys(GroupId(DEFAULT_GROUP), Generation(row.generation))
    state = State.decode(node.data.get(keys.state) or b"")
    state.place = 1  # a command of the next entry is applied
    batch = Batch()
    batch.put(keys.state, state.encode())
    node.data.write(batch)
    assert open_replica(DEFAULT_GROUP, row, node.log, node.data, 11, node.records)[0].partial

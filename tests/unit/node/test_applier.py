"""Background work: who has it gets its turns, and groups without any cost nothing."""

from __future__ import annotations

import random
from functools import partial

import pytest

from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, Generation, GroupId, NodeId
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.machine import DELETION_ROWS
from nebuladb.kv.store import Store
from nebuladb.kv.watch import WatchHub
from nebuladb.node.applier import BACKGROUND_ROWS, Applier, GroupData
from nebuladb.node.node import Node
from nebuladb.node.output import Slice
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.log import LogStore
from nebuladb.storage.memory import MemoryEngine
from nebuladb.storage.spans import Spans
from tests.unit.kv.helpers import Log
from tests.unit.node.lone import PUT, SECONDS, Lone

GROUPS = 1_000
FIRST, SECOND = 17, 400
HASH = Command(Kind.HASH, b"")


class Stores:
    """`GROUPS` empty groups and their applier."""

    def __init__(self) -> None:
        self.engine = engine = MemoryEngine(wal=False)
        self.groups: dict[int, GroupData] = {}
        self.applier = Applier(self.groups, lambda work, data, applied: data.hub.publish(applied), Spans(13))
        self.logs = {group: Log() for group in range(1, GROUPS + 1)}
        for group in self.logs:
            Store.initialise(engine, GroupId(group), Generation(1), index=0, term=0, configuration=b"c")
            store = Store(engine, GroupId(group), Generation(1), NodeId(1))
            self.groups[group] = GroupData(store, WatchHub(store, None, partial(self.applier.look_at, group)))

    def apply(self, group: int, *commands: Command) -> None:
        work = self.logs[group].work(*commands)
        while self.groups[group].store.index < work.index:
            self.applier.slices.append(Slice(group, 1, [work]))
            self.applier.run()


def background_waits(stores: Stores) -> bool:
    return bool(stores.applier.busy)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The groups that were asked whether they have background work, in order."""
    groups: list[int] = []
    busy = vars(Store)["busy"].fget

    def look(store: Store) -> bool:
        groups.append(int.from_bytes(store._keys.state[:8]))
        return bool(busy(store))

    monkeypatch.setattr(Store, "busy", property(look))
    return groups


def test_groups_without_work_are_not_looked_at(looked: list[int]) -> None:
    stores = Stores()
    for _ in range(3):
        stores.apply(FIRST, PUT)
        assert not stores.applier.background()
    assert set(looked) <= {FIRST}
    assert not background_waits(stores)


def test_those_with_work_take_turns(looked: list[int]) -> None:
    stores = Stores()
    for group in (FIRST, SECOND):
        put = partial(kv_pb2.PutRequest, value=b"v")
        keys = (b"%d" % number for number in range(2 * BACKGROUND_ROWS))
        stores.apply(group, *(Command(Kind.PUT, put(key=key).SerializeToString()) for key in keys), HASH)
    turns = []
    while stores.applier.busy:
        looked.clear()
        stores.applier.background()
        turns.append(looked[-1])
    assert turns[:4] == [FIRST, SECOND, FIRST, SECOND]
    assert set(turns) == {FIRST, SECOND}
    for group in (FIRST, SECOND):
        assert stores.groups[group].store.hash_at(1) is not None


def test_a_watch_from_history_is_fed_without_any_write() -> None:
    stores = Stores()
    stores.apply(FIRST, PUT)
    assert not background_waits(stores)
    watcher = stores.groups[FIRST].hub.watch(b"k", start_revision=1)
    assert background_waits(stores)
    assert not stores.applier.background()
    assert [batch.revision for batch in watcher.take()] == [2]
    assert not stores.applier.background()
    assert not background_waits(stores)


def test_a_removed_groups_work_is_forgotten() -> None:
    stores = Stores()
    stores.apply(FIRST, PUT, HASH)
    assert background_waits(stores)
    stores.groups.pop(FIRST).store.close()
    stores.applier.forget(FIRST)
    assert not background_waits(stores)
    assert not stores.applier.background()


def spoil(stores: Stores) -> None:
    """A bit of every row of the first group flips, where checksums see it."""
    state = stores.groups[FIRST].store._keys.state
    for key, _ in list(stores.engine.scan(state[:8], state[:8] + b"\xff" * 8)):
        stores.engine.flip(key, 0, detected=True)


def test_a_hash_that_met_damage_is_not_gone_on_with() -> None:
    """The simulator's seed 756: it took what was left for the whole, and the replica was said to differ."""
    stores = Stores()
    stores.apply(FIRST, PUT, HASH)
    spoil(stores)
    stores.applier.background()
    assert [group for group, _ in stores.applier.damaged] == [FIRST]
    while stores.applier.background():
        pass
    assert stores.groups[FIRST].store.hash_at(1) is None
    assert stores.applier.hashed == []
    assert not background_waits(stores)


def test_damage_that_a_slice_meets_ends_the_background_work_on_that_data() -> None:
    """The simulator's seed 366: the node stopped before the batch was durable that replaces the replica."""
    stores = Stores()
    stores.apply(FIRST, PUT, HASH)
    stores.groups[FIRST].hub.watch(b"k", start_revision=1)  # which has history to read
    spoil(stores)
    everything = kv_pb2.DeleteRequest(key=b"\0", range_end=b"\0").SerializeToString()
    stores.applier.slices.append(Slice(FIRST, 1, [stores.logs[FIRST].work(Command(Kind.DELETE, everything))]))
    stores.applier.run()
    assert [group for group, _ in stores.applier.damaged] == [FIRST]
    while stores.applier.background():
        pass
    assert not background_waits(stores)


def test_a_slice_that_waited_while_damage_was_met_is_void() -> None:
    """The simulator's seed 5331, likewise: a hash met the damage, and the slice's rows came before the replacement."""
    stores = Stores()
    stores.apply(FIRST, PUT, HASH)
    spoil(stores)
    stores.applier.slices.append(Slice(FIRST, 1, [stores.logs[FIRST].work(PUT)]))
    stores.applier.background()
    assert [group for group, _ in stores.applier.damaged] == [FIRST]
    assert stores.applier.run() == (False, False)
    assert len(stores.applier.damaged) == 1


def test_a_slice_that_waited_is_not_for_the_store_that_stands_in() -> None:
    """The simulator's seed 5264: the node stopped, though its log was whole and a snapshot would have healed it."""
    stores = Stores()
    stores.apply(FIRST, PUT)
    stores.applier.slices.append(Slice(FIRST, 1, [stores.logs[FIRST].work(PUT)]))
    stores.groups[FIRST].store.close()
    elsewhere = MemoryEngine(wal=False)
    Store.initialise(elsewhere, GroupId(FIRST), Generation(1), index=0, term=0, configuration=b"c")
    stand_in = stores.groups[FIRST].store = Store(elsewhere, GroupId(FIRST), Generation(1), NodeId(1))
    stores.applier.forget(FIRST)
    assert not stores.applier.slices
    stores.applier.run()
    assert stand_in.index == 0


async def test_a_restarted_node_goes_on_with_what_it_was_about_to_delete() -> None:
    """Nobody writes anything: a tick is enough."""
    lone = Lone()
    await lone.serve()
    for _ in range(5):
        await lone.put()
    revision = lone.node.groups[DEFAULT_GROUP].store.revision
    lone.node._applier.background = lambda: False  # type: ignore[method-assign]  # it dies before it gets to it
    compact = Command(Kind.COMPACT, kv_pb2.CompactRequest(revision=revision).SerializeToString())
    await lone.pump.propose(DEFAULT_GROUP, compact, SECONDS)
    await lone.pump.stop()
    node = Node(lone.node.identity, lone.node.founding, 6, LogStore(lone.log), lone.data, random.Random(2), lone.clock)
    assert node.groups[DEFAULT_GROUP].store.busy
    assert not node.groups[ETCD_GROUP].store.busy
    assert node.background_waits
    while node.background():
        pass
    assert not node.groups[DEFAULT_GROUP].store.busy
    node.background()
    assert not node.background_waits


def test_a_paused_command_lets_others_go_on() -> None:
    stores = Stores()
    keys = [b"%05d" % number for number in range(3 * DELETION_ROWS)]
    put = partial(kv_pb2.PutRequest, value=b"v")
    stores.apply(FIRST, *(Command(Kind.PUT, put(key=key).SerializeToString()) for key in keys))
    delete = kv_pb2.DeleteRequest(key=b"0", range_end=b"1").SerializeToString()
    work = stores.logs[FIRST].work(Command(Kind.DELETE, delete))
    applier, store = stores.applier, stores.groups[FIRST].store

    def slice_of_it() -> int:
        applier.slices.append(Slice(FIRST, 1, [work]))
        applier.run()
        return store._state.deleted

    assert slice_of_it() == DELETION_ROWS, "a long command's slice is a chunk"
    assert (bool(applier.midway), applier.waits) == (True, False)
    applier.paused = True
    assert slice_of_it() == DELETION_ROWS
    assert (bool(applier.midway), applier.waits) == (True, False)
    stores.apply(SECOND, PUT)
    applier.paused = False
    assert (bool(applier.midway), applier.waits) == (True, True)
    applier.run()
    assert store._state.deleted == 2 * DELETION_ROWS
    slice_of_it()
    assert (store.index, store.key_count) == (work.index, 0)
    assert not applier.midway


def test_large_values_of_many_groups_share_a_turns_room() -> None:
    """Each group's slice has its bound in bytes; 64 of them at once kept the loop for half a second."""
    stores, value = Stores(), bytes(1 << 20)
    put = Command(Kind.PUT, kv_pb2.PutRequest(key=b"k", value=value).SerializeToString())
    many = 32
    for group in range(1, many + 1):
        stores.applier.slices.append(Slice(group, 1, [stores.logs[group].work(put)]))

    def done() -> int:
        return sum(data.store.index for data in stores.groups.values())

    turns = before = 0
    while done() < many:
        stores.applier.run()
        assert 0 < done() - before <= 4, "values of a MiB in one turn"
        turns, before = turns + 1, done()
    assert turns >= many // 4

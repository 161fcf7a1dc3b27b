"""The simulator's own pieces: an oracle that can't fail and a network that can't lose would prove nothing."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from nebuladb.ids import BatchId, Generation, GroupId
from nebuladb.kv.answer import KeyValue
from nebuladb.kv.rows import Keys
from nebuladb.node.frame import Address, Envelope
from nebuladb.raft import HardState, Message, MessageType
from nebuladb.raft.entry import encode_entry
from nebuladb.sim.board import Board
from nebuladb.sim.clock import DriftingClock
from nebuladb.sim.core import Core
from nebuladb.sim.disk import Disk
from nebuladb.sim.faults import LATE_MS, Faults
from nebuladb.sim.invariants.changes import Changes
from nebuladb.sim.invariants.logs import Logs
from nebuladb.sim.machine import Machine
from nebuladb.sim.network import Network
from nebuladb.sim.place import Place
from nebuladb.sim.register import Register
from nebuladb.sim.room import Room
from nebuladb.sim.scheduler import Scheduler
from nebuladb.sim.trace import Trace
from nebuladb.sim.violation import Violation
from nebuladb.storage.engine import Batch
from nebuladb.storage.log_batch import GroupWrite, LogBatch
from tests.unit.node.wire import encode_frame

if TYPE_CHECKING:
    from nebuladb.sim.life import Life

GROUP = GroupId(1)


def core(faults: Faults | None = None) -> Core:
    return Core(1, faults or Faults(), Trace())


def run(world: Core) -> None:
    world.scheduler.run(1 << 40)


# --- scheduler -------------------------------------------------------------------------------------------------------


def test_things_happen_in_time_and_those_of_one_millisecond_in_a_drawn_order() -> None:
    orders = set()
    for seed in range(20):
        scheduler = Scheduler(random.Random(seed))
        seen: list[int] = []
        for number in range(4):
            scheduler.after(5, seen.append, number)
        scheduler.after(4, seen.append, -1)
        scheduler.run(100)
        assert seen[0] == -1
        assert scheduler.now == 5
        orders.add(tuple(seen))
    assert len(orders) > 5


def test_a_run_ends_at_its_time_or_when_it_is_stopped() -> None:
    scheduler = Scheduler(random.Random(1))
    seen: list[int] = []
    for at in (3, 5, 7, 9):
        scheduler.after(at, seen.append, at)
    scheduler.after(8, scheduler.stop)
    scheduler.run(5)
    assert seen == [3, 5]
    scheduler.run(100)
    assert seen == [3, 5, 7]


def test_what_goes_round_in_circles_is_seen() -> None:
    scheduler = Scheduler(random.Random(1))

    def again() -> None:
        scheduler.after(0, again)

    again()
    with pytest.raises(Violation, match="circles"):
        scheduler.run(10)


# --- network ---------------------------------------------------------------------------------------------------------


def frame(number: int, messages: int = 1) -> bytes:
    envelopes = [Envelope(1, Message(MessageType.HEARTBEAT, 1, 2, number))] * messages
    return encode_frame(Address(1, 2, 3, 4, 5).encode(), envelopes)


def carried(faults: Faults, count: int = 500) -> tuple[Core, list[bytes]]:
    world = core(faults)
    arrived: list[bytes] = []
    network = Network(world, lambda receiver, sender, data: arrived.append(data), 2)
    for number in range(count):
        network.send(0, 1, frame(number))
    run(world)
    return world, arrived


def test_a_good_network_delivers_everything_once() -> None:
    world, arrived = carried(Faults())
    assert Counter(arrived) == Counter(frame(number) for number in range(500))
    assert (world.report.messages, world.report.delivered, world.report.dropped) == (500, 500, 0)


def test_a_bad_network_loses_doubles_and_reorders() -> None:
    world, arrived = carried(Faults(loss=0.2, duplication=0.2, late=0.1))
    report = world.report
    assert 50 < report.dropped < 150
    assert 50 < report.duplicated < 150
    assert len(arrived) == report.delivered == 500 - report.dropped + report.duplicated
    assert 100 < world.scheduler.now <= LATE_MS
    assert arrived != sorted(arrived)


def test_a_cut_is_one_way_and_heals() -> None:
    world = core()
    arrived: list[tuple[int, int]] = []
    network = Network(world, lambda receiver, sender, data: arrived.append((sender, receiver)), 2)
    network.send(0, 1, frame(1))  # on its way before the cut
    network.cut([(0, 1)])
    network.send(0, 1, frame(2, messages=3))
    network.send(1, 0, frame(3))
    run(world)
    assert sorted(arrived) == [(0, 1), (1, 0)]
    assert world.report.dropped == 3
    assert not network.reaches(0, 1)
    network.heal()
    network.send(0, 1, frame(4))
    run(world)
    assert len(arrived) == 3


def test_what_is_held_arrives_when_all_is_healed() -> None:
    world = core()
    arrived: list[tuple[int, int, bytes]] = []
    network = Network(world, lambda *what: arrived.append(what), 2)
    network.send(0, 1, frame(1))  # on its way already
    network.hold([(0, 1)])
    network.send(0, 1, frame(2))
    network.send(1, 0, frame(3))
    run(world)
    assert arrived == [(0, 1, frame(3))]
    assert world.report.delivered == 1
    network.cut([(0, 1)])
    network.send(0, 1, frame(4))  # lost, not held
    network.heal()
    run(world)
    assert Counter(arrived[1:]) == Counter([(1, 0, frame(1)), (1, 0, frame(2))])
    assert (world.report.delivered, world.report.dropped) == (3, 1)


# --- disk ------------------------------------------------------------------------------------------------------------


def written(disk: Disk, *indexes: int, term: int = 2) -> None:
    """A log with one batch an index."""
    log = disk.open_log()
    creation = LogBatch(BatchId(1))
    creation.create(GROUP, 1, 1)
    log.write(creation, BatchId(0))
    for index in indexes:
        batch = LogBatch(BatchId(index))
        batch.write(GroupWrite(GROUP, HardState(term, 0, 1), [encode_entry(index, term, 0, b"x")]))
        log.write(batch, BatchId(0))


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    done: list[int] = []
    world = core()
    disk = Disk(world, 0, Logs())
    written(disk, 2, 3)
    disk.sync(3, done.append)
    log = disk.open_log()
    batch = LogBatch(BatchId(4))
    batch.write(GroupWrite(GROUP, HardState(2, 0, 1), [encode_entry(4, 2, 0, b"y")]))
    log.write(batch, BatchId(0))
    run(world)
    assert done == [3]
    assert disk.log.durable == 3 < disk.log.position
    disk.sync(4, done.append)
    run(world)
    assert done == [3, 4]
    assert disk.log.durable == disk.log.position


def test_a_power_cut_takes_what_was_not_synced_and_a_kill_does_not() -> None:
    lasts: Counter[tuple[int, int]] = Counter()
    for seed in range(60):
        world = Core(seed, Faults(), Trace())
        disk = Disk(world, 0, Logs())
        written(disk, 2)
        disk.sync(2, lambda _: None)
        run(world)
        written_after = disk.open_log()
        batch = LogBatch(BatchId(3))
        batch.write(GroupWrite(GROUP, HardState(2, 0, 1), [encode_entry(3, 2, 0, b"z")]))
        written_after.write(batch, BatchId(2))
        disk.sync(3, lambda _: pytest.fail("the life that asked is over"))
        disk.crash(power=bool(seed % 2))
        run(world)
        lasts[seed % 2, disk.open_log().reader(GROUP).last()[0]] += 1
    assert lasts[0, 3] == 30
    assert lasts[1, 2] > 5
    assert lasts[1, 3] > 5


def test_a_hanging_disk_ends_no_sync_before_its_time() -> None:
    world = core()
    done: list[int] = []
    disk = Disk(world, 0, Logs())
    written(disk, 2)
    disk.hangs_until = 1_000
    disk.sync(2, lambda batch: done.append(world.scheduler.now))
    run(world)
    assert 1_000 <= done[0] < 1_010


@pytest.mark.parametrize("lost", [{3: 1}, {}])
def test_who_died_without_its_data_is_still_without_it(monkeypatch: pytest.MonkeyPatch, lost: dict[int, int]) -> None:
    """Seed 694: another one lost its log while such a node was down, and nobody could lead any more."""
    monkeypatch.setattr(Machine, "crash", lambda place, *, power: setattr(place, "_life", None))
    place = Place.__new__(Place)
    place._life = cast("Life", SimpleNamespace(node=SimpleNamespace(snapshots=SimpleNamespace(lost=lost))))
    place.crash(power=True)
    assert place.bereft == bool(lost)


def wasteful(disk: Disk) -> None:
    """A deletion takes room there, durably."""
    row = Keys(GROUP, Generation(1)).record_key(2, 0)
    put, deletion = Batch(), Batch()
    put.put(row, b"x")
    deletion.delete(row)
    for batch in (put, deletion):
        disk.data.write(batch)
    disk.data.flush()


@pytest.mark.parametrize("hung", [0, 700])
def test_who_compacted_while_the_disk_hung_may_rest_as_long(hung: int) -> None:
    """Seed 7300786: a compaction took 635 ms, and the rest behind it was taken for room that isn't given back."""
    world = core()
    disk = Disk(world, 0, Logs())
    disk.hangs_until = hung
    disk.time()
    world.scheduler.after(800, wasteful, disk)
    run(world)
    room = Room(cast("Life", None), disk, world)
    if hung:
        room.check("n1")
    else:
        with pytest.raises(Violation, match="take room"):
            room.check("n1")


def test_clocks_drift_and_begin_anywhere() -> None:
    clock = DriftingClock(100, 0.01, random.Random(3))
    first = clock.monotonic()
    clock.now = 100_100
    passed = clock.monotonic() - first
    assert passed != 100_000
    assert abs(passed - 100_000) <= 1_000


# --- oracles ---------------------------------------------------------------------------------------------------------


def test_two_logs_that_differ_under_one_index_and_term_are_seen() -> None:
    logs = Logs()
    world = core()
    written(Disk(world, 0, logs), 2, 3)
    other = Disk(world, 1, logs)
    written(other, 2)
    batch = LogBatch(BatchId(3))
    batch.write(GroupWrite(GROUP, HardState(2, 0, 1), [encode_entry(3, 2, 0, b"other")]))
    with pytest.raises(Violation, match="two logs differ"):
        other.open_log().write(batch, BatchId(0))


def test_a_cut_above_what_is_flushed_is_seen() -> None:
    logs = Logs()
    disk = Disk(core(), 0, logs)
    written(disk, 2, 3)
    batch = LogBatch(BatchId(4))
    batch.cut(GROUP, 3, 2)
    logs.flushed[0, GROUP] = 2
    with pytest.raises(Violation, match="S6"):
        disk.open_log().write(batch, BatchId(0))


def test_what_a_cut_leaves_must_follow_on_the_entry_that_it_is_cut_at() -> None:
    logs = Logs()
    disk = Disk(core(), 0, logs)
    written(disk, 2, 3)
    batch = LogBatch(BatchId(4))
    batch.cut(GROUP, 2, 2)
    logs.flushed[0, GROUP] = 2
    log = disk.open_log()
    log.write(batch, BatchId(0))
    with pytest.raises(Violation, match="doesn't follow"):
        logs._follows(0, GROUP, 2, 1, log)  # as if a snapshot of another term had been kept a log behind


def kv(value: bytes, revision: int, version: int = 1) -> KeyValue:
    return KeyValue(b"k", revision, revision, version, 0, value)


def register(*values: bytes) -> Register:
    """Acknowledged at revisions 2, 3, …"""
    made = Register(1, b"k")
    for revision, value in enumerate(values, 2):
        made.begin(value)
        made.acknowledged(revision)
    return made


def test_a_read_shows_the_settled_state_or_one_under_way() -> None:
    one = register(b"a", b"b")
    one.saw(one.settled, kv(b"b", 3, 2))
    one.begin(b"c")
    one.saw(2, kv(b"b", 3, 2))
    one.saw(2, kv(b"c", 9, 3))
    with pytest.raises(Violation, match="stale"):
        one.saw(one.settled, kv(b"b", 3, 2))


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(None, id="lost"),
        pytest.param(kv(b"a", 2), id="stale"),
        pytest.param(kv(b"b", 3, 3), id="executed twice"),
        pytest.param(kv(b"b", 4, 2), id="another revision"),
        pytest.param(kv(b"x", 4, 3), id="never written"),
    ],
)
def test_a_read_that_shows_anything_else_is_seen(shown: KeyValue | None) -> None:
    one = register(b"a", b"b")
    with pytest.raises(Violation):
        one.saw(one.settled, shown)


def test_a_failed_write_is_not_seen_before_and_not_after() -> None:
    one = register(b"a")
    one.begin(b"b")
    one.failed()
    with pytest.raises(Violation):
        one.saw(one.settled, kv(b"b", 3, 2))
    one.begin(b"c")
    one.saw(one.settled, kv(b"c", 3, 2))
    with pytest.raises(Violation, match="was read"):
        one.failed()


def test_revisions_never_go_back_and_belong_to_one_write() -> None:
    board = Board(Changes())
    board.wrote(1, 5, 0, "one")
    with pytest.raises(Violation, match="same revision"):
        board.wrote(1, 5, 0, "two")
    with pytest.raises(Violation):
        board.wrote(1, 6, 6, "three")
    with pytest.raises(Violation):
        board.tell(1, 4, board.told(1), "four")

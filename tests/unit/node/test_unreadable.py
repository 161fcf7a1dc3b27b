"""A node whose data store fails reads leaves leading to others, for a time, and says so once."""

from __future__ import annotations

from nebuladb.errors import StoreClosed, StoreError
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.node.alarms import MAX_ALARMS, Alarm, AlarmKind, Alarms
from nebuladb.node.disk import STALLED_BIT
from nebuladb.node.unreadable import FIRST_MS, LONGEST_MS, Unreadable
from nebuladb.raft import StateRole
from tests.unit.node.lone import Lone
from tests.unit.node.trio import Trio


def broken(block: int = 7) -> StoreError:
    return StoreError(f"IO error: While pread offset {block} len 4096: /data/000012.sst: Input/output error")


async def test_blocks_that_cannot_be_read_are_one_alarm(alone: Lone) -> None:
    told: list[str] = []
    alone.node.alarms_now.subscribe(lambda alarm: told.append(alarm.text))
    for block in range(2 * MAX_ALARMS):
        alone.pump.request_failed(broken(block))
    [alarm] = alone.node.alarms_now.all()
    assert alarm.kind is AlarmKind.UNREADABLE
    assert len(told) == 1
    assert "offset 0 len" in told[0]
    assert not alone.failures


async def test_a_store_that_was_closed_meanwhile_is_no_bad_disk(alone: Lone) -> None:
    alone.pump.request_failed(StoreClosed("the snapshot is closed"))
    assert not alone.node.alarms()


async def test_a_pump_ends_it_in_time(alone: Lone) -> None:
    alone.pump.request_failed(broken())
    alone.clock.time += FIRST_MS
    await alone.until(lambda: not alone.node.alarms())


def test_it_ends_after_a_time_without_a_failed_read_which_grows() -> None:
    alarms = Alarms()
    unreadable, now, span = Unreadable(alarms), 1_000, FIRST_MS
    for _ in range(10):
        unreadable.met(broken(), now)
        now += span - 1
        unreadable.met(broken(), now)
        now += span - 1
        unreadable.look(now)
        assert alarms.stands(AlarmKind.UNREADABLE)
        unreadable.look(now := now + 1)
        assert not alarms.stands(AlarmKind.UNREADABLE)
        span = min(2 * span, LONGEST_MS)


def test_one_failed_read_is_enough() -> None:
    alarms = Alarms()
    unreadable = Unreadable(alarms)
    unreadable.met(broken(), 1_000)
    unreadable.look(1_000 + FIRST_MS - 1)
    assert alarms.stands(AlarmKind.UNREADABLE)
    for later in (1_001, 1_002, 1_003):  # of one alarm: the next one is twice as long, this one isn't
        unreadable.met(broken(), later)
    unreadable.look(1_003 + FIRST_MS)
    assert not alarms.stands(AlarmKind.UNREADABLE)


def test_it_leads_nothing_while_another_node_is_well() -> None:
    trio = Trio.started()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    node = trio.node(leader)
    unreadable = Unreadable(node.alarms_now)
    unreadable.met(broken(), trio.time)
    trio.run(3_000)
    assert all(replica.raft.role is not StateRole.LEADER for replica in node.host.replicas.values())
    assert node.host.disk.status == STALLED_BIT
    others = [other for other in range(3) if other != leader]
    assert all(trio.node(other).host.peers[trio.who[leader].node].status == STALLED_BIT for other in others)
    unreadable.look(trio.time + FIRST_MS)
    trio.run(3_000)
    assert node.host.disk.status == 0


def test_one_kind_of_alarm_keeps_out_no_other() -> None:
    alarms, told = Alarms(), list[str]()
    alarms.subscribe(lambda alarm: told.append(alarm.text))
    for _ in range(2):
        for number in range(2 * MAX_ALARMS):
            alarms.raised(Alarm(AlarmKind.OTHER, f"something {number}"))
            alarms.raised(Alarm(AlarmKind.NO_SPACE, "a snapshot doesn't fit", group=4 + number))
    alarms.raised(Alarm(AlarmKind.NO_SPACE, "no room"))
    assert alarms.counts()[AlarmKind.OTHER] == MAX_ALARMS
    assert alarms.counts()[AlarmKind.NO_SPACE] == MAX_ALARMS + 1
    assert len(told) == 2 * MAX_ALARMS + 1
    assert told[-1] == "no room"

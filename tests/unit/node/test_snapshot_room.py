"""A snapshot that doesn't fit on its receiver's disk comes again, but ever later; the receiver's operator is told."""

from __future__ import annotations

import random
from dataclasses import replace

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.node.alarms import AlarmKind
from nebuladb.node.disk import Space
from nebuladb.node.options import MAX_OUTGOING, MIN_SNAPSHOT_RATE, SnapshotLimits
from nebuladb.node.pauses import FIRST_MS, LONGEST_MS, Pauses
from nebuladb.raft import StateRole
from tests.unit.node.test_snapshots import OPTIONS, away, founded, level, put, store
from tests.unit.node.trio import Trio


def told(trio: Trio, place: int) -> list[str]:
    return [alarm.text for alarm in trio.node(place).alarms_now.all() if alarm.kind is AlarmKind.NO_SPACE]


def test_a_snapshot_that_does_not_fit_is_sent_again_later_each_time() -> None:
    trio = founded()
    leader, follower = away(trio, size=60_000)
    trio.start(follower)
    began: list[int] = []
    for turn in range(3):
        trio.run(turn * FIRST_MS - 1_000)
        trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
        began.append(trio.time)
        trio.node(follower).space(Space.CRITICAL, "its rows fill the disk")
        trio.until(lambda: not trio.node(leader).snapshots.sender.outgoing, "given up")
        trio.node(follower).space(Space.PLENTY, "")  # for its rows are gone
        assert len(told(trio, follower)) == 1
        assert "doesn't fit" in told(trio, follower)[0], "that there is room again says nothing"
    first, second = began[1] - began[0], began[2] - began[1]
    assert FIRST_MS <= first < FIRST_MS + 2_000
    assert 2 * FIRST_MS <= second < 2 * FIRST_MS + 2_000
    trio.run(4 * FIRST_MS)
    trio.until(level(trio), "level")
    assert not told(trio, follower)
    assert trio.node(leader).snapshots.counts["sent"] == 1


def test_the_least_rate_is_enough_for_as_many_as_there_may_be() -> None:
    """With 10 KiB a second each was given up for want of progress, and another begun, for good."""
    trio = founded(replace(OPTIONS, snapshots=SnapshotLimits(rate=MIN_SNAPSHOT_RATE // MAX_OUTGOING)))
    leader, follower = away(trio, size=10_000)
    trio.start(follower)
    trio.until(level(trio), "level")
    assert trio.node(leader).snapshots.counts["failed"] == 0


def test_where_the_log_of_another_leader_reaches_back_far_enough_the_alarm_goes() -> None:
    trio = founded()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    follower, third = (leader + 1) % 3, (leader + 2) % 3
    trio.unflushed = {third}  # which keeps its log whole
    trio.crash(follower)
    for number in range(40):
        put(trio, leader, b"%04d" % number, random.Random(number).randbytes(60_000))
    last = store(trio, leader).index
    trio.flush(leader)
    trio.run(3_000)
    trio.until(lambda: trio.node(leader).log.reader(DEFAULT_GROUP).start()[0] >= last - 10, "the log is cut")
    assert trio.leader(DEFAULT_GROUP) == leader
    trio.start(follower)
    trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
    trio.node(follower).space(Space.CRITICAL, "its rows fill the disk")
    trio.until(lambda: not trio.node(leader).snapshots.sender.outgoing, "given up")
    trio.node(follower).space(Space.PLENTY, "")
    trio.run(1_000)
    assert told(trio, follower)
    trio.node(leader).host.transfer_leadership(DEFAULT_GROUP, trio.who[third].node)
    trio.until(level(trio), "level")
    assert trio.leader(DEFAULT_GROUP) == third
    trio.until(lambda: not told(trio, follower), "the alarm goes")
    assert not trio.node(follower).snapshots.counts["received"]


def test_who_waits_for_one_that_did_not_fit_is_handed_nothing() -> None:
    trio = founded()
    leader, follower = away(trio, size=60_000)
    third = 3 - leader - follower
    trio.start(follower)
    trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
    trio.node(follower).space(Space.CRITICAL, "its rows fill the disk")
    trio.until(lambda: not trio.node(leader).snapshots.sender.outgoing, "given up")
    trio.node(follower).space(Space.PLENTY, "")  # so that it looks like the only node that is well
    for place in (third, leader):
        trio.run(200)
        trio.node(place).space(Space.LOW, "little is free")
    raft = trio.node(leader).host.replicas[DEFAULT_GROUP].raft
    trio.run(100)
    begun = trio.time
    while trio.time < begun + 3_000:
        assert raft.role is StateRole.LEADER
        assert not raft.transferee, "nothing is proposed meanwhile"
        trio.run(50)
    host = trio.node(leader).host
    leaves_to = host.replicas[DEFAULT_GROUP].successor(host.receivers(DEFAULT_GROUP))
    assert leaves_to == trio.node(third).identity.node
    trio.until(level(trio), "level")
    trio.until(lambda: trio.leader(DEFAULT_GROUP) == follower, "handed over")


def test_pauses_grow_to_a_bound_and_end_with_a_success() -> None:
    pauses, key, now = Pauses(), (1, 2), 0
    assert not pauses.last(key, now)
    spans = []
    for _ in range(7):
        pauses.failed(key, now)
        begun = now
        while pauses.last(key, now):
            now += FIRST_MS
        spans.append(now - begun)
    assert spans == [min(FIRST_MS << turn, LONGEST_MS) for turn in range(7)]
    assert not pauses.last((1, 3), 0)
    pauses.forget(key)
    pauses.forget(key)
    pauses.failed(key, now)
    assert not pauses.last(key, now + FIRST_MS)

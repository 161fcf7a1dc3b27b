"""A replica that was away too long gets a snapshot: in chunks, built unseen, made current by one batch (S5, S30)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nebuladb.env import probe
from nebuladb.errors import Corruption
from nebuladb.ids import DEFAULT_GROUP, META_GROUP, Generation, GroupId
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.rows import group_span
from nebuladb.kv.store import Store
from nebuladb.node.frame import HostMessageType
from nebuladb.node.incoming import SILENT_TICKS
from nebuladb.node.options import NodeOptions
from nebuladb.node.outgoing import IDLE_TICKS
from nebuladb.node.registry import GroupState
from nebuladb.node.starting import open_replica
from nebuladb.node.tail import TailLimits
from nebuladb.pb.nebula.v1 import kv_pb2
from nebuladb.storage.memory import MemoryEngine
from tests.unit.node.trio import TICK_MS, Trio
from tests.unit.node.wire import decode_frame, put_request

OPTIONS = NodeOptions(tail=TailLimits(entries=5, cut_entries=2))


def put(trio: Trio, place: int, key: bytes, value: bytes = b"v") -> None:
    command = Command(Kind.PUT, put_request(key, value))
    machine = trio.machines[place]
    request = trio.node(place).submit(DEFAULT_GROUP, command, trio.time + 20_000)
    trio.until(lambda: request in machine.answers, "an answer")


def store(trio: Trio, place: int, group: int = DEFAULT_GROUP) -> Store:
    return trio.node(place).groups[group].store


def founded(options: NodeOptions = OPTIONS) -> Trio:
    return Trio.started(options=options)


def away(trio: Trio, count: int = 40, size: int = 1) -> tuple[int, int]:
    """A follower of `default` is away while `count` keys are written and the log is cut; (leader, follower)."""
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    follower = (leader + 1) % 3
    trio.crash(follower)
    for number in range(count):
        put(trio, leader, b"%04d" % number, random.Random(number).randbytes(size))
    last = store(trio, leader).index
    for place in {0, 1, 2} - {follower}:
        trio.flush(place)
    trio.run(3_000)
    leader = trio.leader(DEFAULT_GROUP) or 0
    trio.flush(leader)
    trio.until(lambda: trio.node(leader).log.reader(DEFAULT_GROUP).start()[0] >= last - 10, "the log is cut")
    return leader, follower


def level(trio: Trio, *groups: int) -> Callable[[], bool]:
    """Whether all that run have the same applied index."""

    def check() -> bool:
        return all(
            len({store(trio, machine.place, group).index for machine in trio.running}) == 1
            for group in groups or (DEFAULT_GROUP,)
        )

    return check


def digest(trio: Trio) -> set[bytes]:
    """The hashes of `default`'s state at one index, on all nodes."""
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    before = store(trio, leader).index
    trio.node(leader).submit(DEFAULT_GROUP, Command(Kind.HASH, b""), trio.time + 20_000)
    trio.until(lambda: store(trio, leader).index > before and level(trio)(), "applied")
    for machine in trio.running:
        while machine.node is not None and machine.node.background():
            pass
    stores = [store(trio, machine.place) for machine in trio.running]
    for index in range(before + 1, stores[0].index + 1):
        found = {hashed for each in stores if (hashed := each.hash_at(index)) is not None}
        if found:
            assert all(each.hash_at(index) for each in stores)
            return found
    raise AssertionError("no hash was taken")


def test_a_follower_that_was_away_too_long_catches_up_by_snapshot() -> None:
    trio = founded()
    leader, follower = away(trio)
    counts = trio.node(leader).snapshots.counts
    assert counts == {}, "nobody is there to take one"
    trio.start(follower)
    trio.until(level(trio), "level")
    assert counts["sent"] == 1
    received = trio.node(follower).snapshots.counts
    assert received["received"] == 1
    assert received["received_bytes"] == counts["sent_bytes"] > 0
    assert len(digest(trio)) == 1
    put(trio, follower, b"after")
    trio.until(level(trio), "level")
    assert not trio.node(leader).host.held_logs


def test_the_vote_and_the_new_state_stand_together_on_the_disk() -> None:
    """One batch: generation, configuration, log start; term and vote as they were (S5, S30)."""
    trio = founded()
    _, follower = away(trio)
    trio.start(follower)
    trio.until(level(trio), "level")
    machine = trio.machines[follower]
    node = trio.node(follower)
    row = trio.registry(follower)[DEFAULT_GROUP]
    assert row.generation > 1
    assert Store.generations(node.data).count((DEFAULT_GROUP, Generation(row.generation))) == 1
    assert [found for found in Store.generations(node.data) if found[0] == DEFAULT_GROUP] == [
        (DEFAULT_GROUP, Generation(row.generation))
    ]
    term, vote = node.host.replicas[DEFAULT_GROUP].raft.term, node.host.replicas[DEFAULT_GROUP].raft.vote
    trio.crash(follower)
    trio.start(follower)
    raft = trio.node(follower).host.replicas[DEFAULT_GROUP].raft
    assert (raft.term, raft.vote) == (term, vote)
    assert machine.node is not None
    trio.until(level(trio), "level")
    assert len(digest(trio)) == 1


@pytest.mark.parametrize("where", range(0, 60, 3))
def test_a_crash_at_any_turn_of_an_install_leaves_the_old_state_or_the_new(where: int) -> None:
    """The follower loses its power after `where` turns with the snapshot; it loses what it had not synced."""
    trio = founded()
    _, follower = away(trio, size=20_000)
    trio.start(follower)
    machine = trio.machines[follower]
    turns = 0
    real = trio.node(follower).turn

    def turn() -> object:
        nonlocal turns
        found = real()
        incoming = machine.node is not None and DEFAULT_GROUP in machine.node.snapshots.incoming
        turns += bool(incoming or turns)
        return found

    trio.node(follower).turn = turn  # type: ignore[method-assign, assignment]
    trio.until(lambda: turns >= where or level(trio)(), "so many turns")
    old = store(trio, follower).index
    trio.crash(follower)
    trio.start(follower)
    assert store(trio, follower).index >= min(old, 1)
    trio.until(level(trio), "level")
    assert len(digest(trio)) == 1
    wanted = {(group, row.generation) for group, row in trio.registry(follower).items()}
    trio.run(1_000)
    assert set(Store.generations(trio.node(follower).data)) == wanted


def test_lost_repeated_and_reordered_chunks_do_no_harm() -> None:
    trio = founded()
    _, follower = away(trio, size=30_000)
    rng = random.Random(5)
    late: list[tuple[int, int, bytes]] = []
    target = trio.who[follower].node

    def lose(sender: int, receiver: int, frame: bytes) -> bool:
        kinds = {int(envelope.message.type) for envelope in decode_frame(frame)[1]}
        if not kinds & {HostMessageType.SNAPSHOT_CHUNK, HostMessageType.SNAPSHOT_REPLY}:
            return False
        late.append((sender, receiver, frame))
        return rng.random() < 0.3

    trio.lose = lose
    trio.start(follower)

    def repeat() -> bool:
        if late and rng.random() < 0.5:
            sender, receiver, frame = rng.choice(late)
            machine = next(m for m in trio.running if trio.who[m.place].node == receiver)
            assert machine.node is not None
            machine.node.host.receive(sender, frame)
        return level(trio)()

    trio.until(repeat, "level")
    assert target
    assert probe.hits["chunks sent again"]
    assert len(digest(trio)) == 1


def test_a_new_leader_begins_anew() -> None:
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
    trio.crash(leader)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) not in (None, leader), "a new leader")
    trio.start(leader)
    trio.until(level(trio), "level")
    assert len(digest(trio)) == 1


def test_a_transfer_without_progress_ends_and_the_log_is_let_go() -> None:
    trio = founded()
    leader, follower = away(trio)
    trio.lose = lambda sender, receiver, frame: any(
        envelope.message.type == HostMessageType.SNAPSHOT_REPLY for envelope in decode_frame(frame)[1]
    )
    trio.start(follower)
    trio.unflushed.add(follower)
    trio.until(lambda: bool(trio.node(leader).host.held_logs), "on its way")
    trio.until(lambda: trio.node(leader).snapshots.counts["failed"] > 0, "given up")
    trio.lose = lambda sender, receiver, frame: False
    trio.unflushed.clear()
    trio.until(level(trio), "level")


def test_a_receiver_that_died_before_it_said_that_all_is_in_lets_the_log_go() -> None:
    trio = founded()
    leader, follower = away(trio)
    trio.unflushed.add(follower)
    trio.start(follower)
    trio.until(lambda: bool(trio.node(follower).snapshots.to_flush()), "all is there")
    trio.crash(follower)
    given_up = trio.time + (IDLE_TICKS + 5) * TICK_MS
    trio.until(lambda: trio.node(leader).snapshots.counts["failed"] > 0, "given up")
    assert trio.time <= given_up
    assert not trio.node(leader).host.held_logs
    trio.unflushed.clear()
    trio.start(follower)
    trio.until(level(trio), "level")


def test_a_removed_snapshot_leaves_nothing() -> None:
    """A sender that falls silent for good: what was written of it goes."""
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
    trio.hung.update({0, 1, 2} - {follower})
    trio.until(lambda: DEFAULT_GROUP not in trio.node(follower).snapshots.incoming, "given up")
    trio.run(100)
    held = [found for found in Store.generations(trio.node(follower).data) if found[0] == DEFAULT_GROUP]
    assert held == [(DEFAULT_GROUP, Generation(1))]
    trio.hung.clear()
    trio.until(level(trio), "level")
    assert leader != follower


def test_watches_live_through_it() -> None:
    """Fed from history where that is there, else canceled with the compact revision (S26)."""
    trio = founded()
    leader, follower = away_by_silence(trio)
    hub = trio.node(follower).groups[DEFAULT_GROUP].hub
    watcher = hub.watch(b"\0", b"\0")
    last = store(trio, follower).revision
    rejoin(trio, leader, follower)
    while trio.node(follower).background():
        pass
    told = [batch.revision for batch in watcher.take()]
    assert told == list(range(last + 1, store(trio, follower).revision + 1))
    assert not watcher.canceled


def test_a_watch_below_the_floor_is_canceled_with_it() -> None:
    trio = founded()
    leader, follower = away_by_silence(trio, compact=True)
    watcher = trio.node(follower).groups[DEFAULT_GROUP].hub.watch(b"\0", b"\0")
    rejoin(trio, leader, follower)
    while trio.node(follower).background():
        pass
    assert watcher.canceled
    assert watcher.compact_revision == store(trio, leader).floor > 0


def away_by_silence(trio: Trio, *, compact: bool = False) -> tuple[int, int]:
    """As `away`, but the follower runs on."""
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    follower = (leader + 1) % 3
    cut = trio.who[follower].node
    trio.lose = lambda sender, receiver, frame: cut in (sender, receiver)
    trio.run(2_000)
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    for number in range(40):
        put(trio, leader, b"%04d" % number)
    if compact:
        body = kv_pb2.CompactRequest(revision=store(trio, leader).revision - 1).SerializeToString()
        trio.node(leader).submit(DEFAULT_GROUP, Command(Kind.COMPACT, body), trio.time + 20_000)
        trio.run(500)
    last = store(trio, leader).index
    trio.flush(leader)
    trio.run(2_500)
    trio.flush(leader)
    trio.until(lambda: trio.node(leader).log.reader(DEFAULT_GROUP).start()[0] >= last - 10, "the log is cut")
    return leader, follower


def rejoin(trio: Trio, leader: int, follower: int) -> None:
    trio.lose = lambda sender, receiver, frame: False
    trio.until(level(trio), "level")
    assert trio.node(follower).snapshots.counts["received"] >= 1
    assert leader != follower


def lost(trio: Trio, place: int) -> None:
    """A node's data/ is gone; its log is whole."""
    trio.crash(place)
    trio.machines[place].data = MemoryEngine(wal=False)
    trio.start(place)


def test_without_data_a_replica_votes_and_gets_a_snapshot() -> None:
    """It neither campaigns nor serves before that is in (S5, S15)."""
    trio = founded()
    leader, follower = away(trio)
    trio.start(follower)
    trio.until(level(trio), "level")
    for _ in range(3):
        trio.flush(follower)
        trio.run(1_500)
    other = 3 - leader - follower
    lost(trio, follower)
    replica = trio.node(follower).host.replicas[DEFAULT_GROUP]
    assert replica.lost
    assert replica.serves_from > 1 << 60
    assert any(f"shard {DEFAULT_GROUP}" in text for text in trio.node(follower).alarms())
    trio.hung.add(leader)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) == other, "its vote counts, and it doesn't lead")
    trio.until(lambda: not trio.node(follower).host.replicas[DEFAULT_GROUP].lost, "a snapshot is in")
    trio.hung.clear()
    trio.until(level(trio, META_GROUP, DEFAULT_GROUP), "level")
    assert len(digest(trio)) == 1
    assert not trio.node(follower).snapshots.lost


def test_without_data_a_replica_asks_the_next_leader_as_soon_as_there_is_one() -> None:
    """What the last one had begun to send has no end, and to wait until it is given up takes 15 s."""
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    trio.until(level(trio), "level")
    lost(trio, follower)
    trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
    assert trio.node(follower).host.replicas[DEFAULT_GROUP].lost
    trio.crash(leader)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) not in (None, leader), "a new leader")
    before = trio.time
    trio.until(lambda: not trio.node(follower).host.replicas[DEFAULT_GROUP].lost, "a snapshot is in")
    assert trio.time - before < SILENT_TICKS * TICK_MS // 2


def test_an_installing_row_is_a_replica_without_data() -> None:
    """What was found damaged in use isn't looked at again after a restart."""
    trio = founded()
    node = trio.node(0)
    row = trio.registry(0)[DEFAULT_GROUP]._replace(state=GroupState.INSTALLING)
    start, stand_in = open_replica(DEFAULT_GROUP, row, node.log, node.data, 11, node.records)
    assert start.lost
    assert stand_in.index == node.log.reader(GroupId(DEFAULT_GROUP)).start()[0]


def flip(trio: Trio, place: int) -> None:
    """A bit of every row of `default` flips on the disk, where checksums see it."""
    data = trio.machines[place].data
    row = trio.registry(place)[DEFAULT_GROUP]
    for key, _ in list(data.scan(*group_span(GroupId(DEFAULT_GROUP), Generation(row.generation)))):
        data.flip(key, 3, detected=True)


def test_damage_met_in_use_is_not_served_and_heals_by_a_snapshot() -> None:
    """By apply, which then has read a damaged row; the replica keeps its id and its vote (S15)."""
    trio = founded()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    follower = (leader + 1) % 3
    for number in range(5):
        put(trio, leader, b"%04d" % number)
    trio.until(level(trio), "level")
    replica = trio.node(follower).host.replicas[DEFAULT_GROUP].id
    watcher = trio.node(follower).groups[DEFAULT_GROUP].hub.watch(b"\0", b"\0")
    trio.node(follower).records.turn()
    trio.node(follower).records.turn()
    flip(trio, follower)
    found, alarms = probe.hits["data damaged in use"], list[str]()
    trio.node(follower).alarms_now.subscribe(lambda alarm: alarms.append(alarm.text))
    for number in range(5):
        put(trio, leader, b"%04d" % number, b"again")
    trio.until(lambda: trio.node(follower).snapshots.counts["received"] > 0, "a snapshot is in")
    assert probe.hits["data damaged in use"] == found + 1
    assert watcher.canceled
    assert any("shard 2" in text for text in alarms)
    trio.until(level(trio), "level")
    assert trio.node(follower).alarms() == []
    assert trio.node(follower).host.replicas[DEFAULT_GROUP].id == replica
    assert len(digest(trio)) == 1


def test_after_a_restart_damage_is_remembered() -> None:
    trio = founded()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    follower = (leader + 1) % 3
    trio.node(follower).damaged(DEFAULT_GROUP, Corruption("for the test"))
    trio.node(follower).damaged(DEFAULT_GROUP, Corruption("twice, before the first is durable"))
    trio.hung.add(leader)
    trio.settle()
    trio.crash(follower)
    trio.start(follower)
    assert trio.node(follower).host.replicas[DEFAULT_GROUP].lost
    trio.hung.clear()
    trio.until(lambda: not trio.node(follower).snapshots.lost, "a snapshot is in")
    assert len(digest(trio)) == 1


def test_a_leader_whose_data_is_damaged_lets_go() -> None:
    """When a snapshot is to be read from it, say."""
    trio = founded()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    trio.node(leader).damaged(DEFAULT_GROUP, Corruption("for the test"))
    trio.until(lambda: trio.leader(DEFAULT_GROUP) not in (None, leader), "another leads")
    trio.until(lambda: not trio.node(leader).snapshots.lost, "a snapshot is in")
    trio.until(level(trio), "level")
    assert len(digest(trio)) == 1


def test_a_flush_of_data_that_is_lost_meanwhile_says_nothing_of_the_log() -> None:
    """The simulator's seed 389: the log was to be cut where the flush had been, above all that the replica has."""
    trio = founded()
    node = trio.node(0)
    flush = node.begin_flush()
    assert flush.applied[DEFAULT_GROUP] > node.host.replicas[DEFAULT_GROUP].log_start
    trio.lose = lambda sender, receiver, frame: True
    node.damaged(DEFAULT_GROUP, Corruption("for the test"))
    trio.settle()
    replica = node.host.replicas[DEFAULT_GROUP]
    assert replica.lost
    node.end_flush(flush)
    assert replica.durably_applied <= replica.applied


def test_alone_it_stops() -> None:
    """There is nobody to send a snapshot, and what is committed can't be applied."""
    trio = Trio.started(1)
    with pytest.raises(Corruption):
        trio.node(0).damaged(DEFAULT_GROUP, Corruption("for the test"))


def test_a_conflicting_log_does_not_survive_an_install() -> None:
    """Entries of a term that nobody else has: the snapshot's own history follows at its index, not theirs (S5)."""
    trio = founded()
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    cut = trio.who[leader].node
    trio.lose = lambda sender, receiver, frame: cut in (sender, receiver)
    for number in range(60):
        command = Command(Kind.PUT, put_request(b"lost/%04d" % number, b"v"))
        trio.node(leader).submit(DEFAULT_GROUP, command, trio.time + 100)
        trio.settle()
    others = [place for place in range(3) if place != leader]
    trio.hung.add(leader)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) in others, "another leads")
    new = trio.leader(DEFAULT_GROUP)
    assert new is not None
    for number in range(40):
        put(trio, new, b"kept/%04d" % number)
    trio.run(2_500)
    for place in others:
        trio.flush(place)
    trio.run(2_500)
    trio.flush(new)
    trio.run(100)
    assert trio.node(leader).log.reader(GroupId(DEFAULT_GROUP)).last()[0] > store(trio, leader).index
    trio.hung.clear()
    trio.lose = lambda sender, receiver, frame: False
    trio.until(level(trio), "level")
    assert trio.node(leader).snapshots.counts["received"] == 1
    assert len(digest(trio)) == 1
    reader, there = (trio.node(place).log.reader(GroupId(DEFAULT_GROUP)) for place in (leader, new))
    assert reader.last() == there.last()
    first = max(reader.start()[0], there.start()[0])
    assert all(reader.term(index) == there.term(index) for index in range(first, there.last()[0]))

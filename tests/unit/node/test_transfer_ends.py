"""Snapshots that one side gives up, or has no room for, and what a replica without data isn't asked to do meanwhile."""

from __future__ import annotations

import pytest

from nebuladb.errors import Corruption
from nebuladb.ids import DEFAULT_GROUP, META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.kv.store import Store
from nebuladb.node.disk import Space
from nebuladb.node.frame import HostMessageType
from nebuladb.node.incoming import Stage
from nebuladb.raft import MessageType
from tests.unit.node.test_snapshots import away, founded, level, put, store
from tests.unit.node.trio import TICK_MS, Trio
from tests.unit.node.wire import decode_frame, put_request

SOON_MS = 5_000
DAMAGE = Corruption("for the test")


def has(frame: bytes, kind: int) -> bool:
    return any(envelope.message.type == kind for envelope in decode_frame(frame)[1])


def follower_of(trio: Trio, group: int = DEFAULT_GROUP) -> int:
    leader = trio.leader(group)
    assert leader is not None
    return (leader + 1) % 3


def lost(trio: Trio, place: int, group: int = DEFAULT_GROUP) -> bool:
    replica = trio.node(place).host.replicas.get(group)
    return replica is None or replica.lost


@pytest.mark.parametrize("stage", [Stage.RECEIVING, Stage.FLUSHING])
def test_who_dropped_what_it_had_is_sent_it_anew(stage: Stage) -> None:
    """The sender went on behind what was there no more until it gave up, after up to a minute."""
    trio = founded()
    _, follower = away(trio, size=30_000)
    for machine in trio.running:
        snapshots = trio.node(machine.place).snapshots
        snapshots.sender._limits = snapshots.sender._limits._replace(rate=4_000_000)
    trio.unflushed.add(follower)
    trio.start(follower)
    coming = trio.node(follower).snapshots.incoming

    def under_way() -> bool:
        incoming = coming.get(DEFAULT_GROUP)
        return incoming is not None and incoming.stage is stage and incoming.importer.next > 0

    trio.until(under_way, "on its way")
    trio.node(follower).damaged(DEFAULT_GROUP, DAMAGE)
    trio.unflushed.clear()
    before = trio.time
    trio.run(TICK_MS)
    trio.until(lambda: not lost(trio, follower), "a snapshot is in")
    assert trio.time - before < SOON_MS


def test_who_asks_while_the_first_chunk_is_on_its_way_ends_nothing() -> None:
    """On a slow link each question ended the transfer that the one before it had begun."""
    trio = founded()
    leader, follower = away(trio)
    trio.start(follower)
    trio.until(level(trio), "level")
    asked = 0

    def lose(sender: int, receiver: int, frame: bytes) -> bool:
        nonlocal asked
        asked += has(frame, HostMessageType.SNAPSHOT_WANTED)
        return has(frame, HostMessageType.SNAPSHOT_CHUNK)

    trio.lose = lose
    trio.node(follower).damaged(DEFAULT_GROUP, DAMAGE)
    under_way = trio.node(leader).snapshots.sender.outgoing
    trio.until(lambda: bool(under_way), "on its way")
    before = [*under_way.values()]
    asked = 0
    trio.until(lambda: asked > 1, "asked again")
    assert [*under_way.values()] == before
    assert before[0].outcome is None


def test_a_sender_that_gave_up_is_asked_again_in_its_term() -> None:
    """One read of its disk had failed; the receiver waited for 15 s."""
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    trio.until(level(trio), "level")
    for machine in trio.running:
        snapshots = trio.node(machine.place).snapshots
        snapshots.sender._limits = snapshots.sender._limits._replace(rate=2_000_000)
    trio.node(follower).damaged(DEFAULT_GROUP, DAMAGE)
    coming = trio.node(follower).snapshots.incoming
    trio.until(lambda: DEFAULT_GROUP in coming and coming[DEFAULT_GROUP].importer.next > 0, "on its way")
    (outgoing,) = trio.node(leader).snapshots.sender.outgoing.values()
    outgoing.chunk_read(None)
    before = trio.time
    trio.until(lambda: not lost(trio, follower), "a snapshot is in")
    assert trio.time - before < SOON_MS


def test_what_an_earlier_leader_had_sent_is_removed() -> None:
    """The half that had come stayed on the disk until the node's next start, and the next half beside it."""
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    node = trio.node(follower)

    def under_way() -> bool:
        incoming = node.snapshots.incoming.get(DEFAULT_GROUP)
        return incoming is not None and incoming.importer.written > 0

    trio.until(under_way, "rows of it are written")
    trio.crash(leader)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) not in (None, leader), "a new leader")
    trio.start(leader)
    trio.until(level(trio), "level")
    trio.run(100)
    held = [generation for group, generation in Store.generations(node.data) if group == DEFAULT_GROUP]
    assert held == [store(trio, follower).generation]


def test_a_chunk_is_read_by_one_thread_at_a_time() -> None:
    """Two at once took rows from each other, and the receiver refused what came of it."""
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    node = trio.node(leader)
    trio.until(lambda: bool(node.snapshots.sender.outgoing), "on its way")
    [outgoing] = node.snapshots.sender.outgoing.values()
    assert outgoing.wants_chunk, "what it may send in a tick is used up"
    node.snapshots.sender._budget = 1 << 20
    exports = [one for _ in range(5) for one in node.turn().exports]
    assert exports == [outgoing], "nobody has said yet that it was read"


def test_damage_in_data_that_was_replaced_since_is_nobodys() -> None:
    """Rows that were being fetched meanwhile; it cost another snapshot."""
    trio = founded()
    follower = follower_of(trio)
    node = trio.node(follower)
    before = store(trio, follower)
    node.damaged(DEFAULT_GROUP, DAMAGE, before)
    trio.until(lambda: node.snapshots.counts["received"] == 1, "a snapshot is in")
    node.damaged(DEFAULT_GROUP, DAMAGE, before)
    trio.run(1_000)
    assert not lost(trio, follower)
    assert node.snapshots.counts["received"] == 1


def test_a_node_at_its_last_space_is_sent_none_until_it_has_room() -> None:
    trio = founded()
    leader, follower = away(trio, size=30_000)
    trio.start(follower)
    trio.node(follower).space(Space.CRITICAL, "0 MiB are free")
    trio.run(SOON_MS)
    received = trio.node(follower).snapshots.counts
    assert not received["received_bytes"]
    assert not trio.node(follower).snapshots.incoming
    assert not trio.node(leader).host.held_logs
    trio.node(follower).space(Space.PLENTY, "")
    trio.until(level(trio), "level")
    assert received["received"] == 1


def test_a_node_that_runs_out_of_space_lets_go_of_what_comes() -> None:
    trio = founded()
    leader, follower = away(trio, size=30_000)
    for machine in trio.running:
        snapshots = trio.node(machine.place).snapshots
        snapshots.sender._limits = snapshots.sender._limits._replace(rate=4_000_000)
    trio.start(follower)
    trio.until(lambda: DEFAULT_GROUP in trio.node(follower).snapshots.incoming, "on its way")
    trio.node(follower).space(Space.CRITICAL, "0 MiB are free")
    trio.run(500)
    assert not trio.node(follower).snapshots.incoming
    assert not trio.node(leader).snapshots.sender.outgoing
    trio.node(follower).space(Space.PLENTY, "")
    trio.until(level(trio), "level")


def test_leadership_isnt_given_to_who_waits_for_a_snapshot() -> None:
    """Its log is whole, so it was the first choice; it can't lead, and the healthy one was never asked."""
    trio = founded()
    bereft = follower_of(trio)
    leader, healthy = (bereft + 2) % 3, (bereft + 1) % 3
    trio.lose = lambda sender, receiver, frame: has(frame, HostMessageType.SNAPSHOT_CHUNK)
    trio.node(bereft).damaged(DEFAULT_GROUP, DAMAGE)
    trio.run(2_000)
    assert lost(trio, bereft)
    assert trio.leader(DEFAULT_GROUP) == leader
    trio.node(leader).space(Space.LOW, "1 MiB is free")
    trio.until(lambda: trio.leader(DEFAULT_GROUP) == healthy, "another leads")


def test_without_metas_data_a_node_goes_by_what_it_knew() -> None:
    trio = founded()
    follower = follower_of(trio, META_GROUP)
    trio.lose = lambda sender, receiver, frame: has(frame, HostMessageType.SNAPSHOT_CHUNK)
    trio.node(follower).damaged(META_GROUP, DAMAGE)
    trio.run(2_000)
    assert lost(trio, follower, META_GROUP)
    assert trio.node(follower).meta.version
    put(trio, follower, b"k")
    trio.lose = lambda sender, receiver, frame: False
    trio.until(lambda: not lost(trio, follower, META_GROUP), "a snapshot is in")
    assert trio.node(follower).meta.version


def test_a_late_reply_to_the_replica_of_before_confirms_no_read() -> None:
    """Rounds of reads are numbered on when a replica is built anew in one life of its node (S8)."""
    trio = founded()
    follower = follower_of(trio)
    leader = (follower + 2) % 3
    this, other = trio.who[follower].node, trio.who[leader].node
    late: list[bytes] = []
    node = trio.node(follower)

    def hold(sender: int, receiver: int, frame: bytes) -> bool:
        held = receiver == this and has(frame, MessageType.READ_INDEX_REPLY)
        late.extend([frame] * held)
        return held

    trio.lose = hold
    node.read(DEFAULT_GROUP, trio.time + 60_000)
    trio.settle()
    assert late
    node.damaged(DEFAULT_GROUP, DAMAGE)
    trio.run(500)
    trio.until(lambda: not lost(trio, follower), "a snapshot is in")
    trio.until(level(trio), "level")
    trio.lose = lambda sender, receiver, frame: this in (sender, receiver)
    request = trio.node(leader).submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"k", b"new")), trio.time + 20_000)
    trio.until(lambda: request in trio.machines[leader].answers, "acknowledged without it")
    read = node.read(DEFAULT_GROUP, trio.time + 60_000)
    trio.settle()
    node.host.receive(other, late[0])
    trio.settle()
    assert store(trio, follower).get(b"k") is None
    assert read not in trio.machines[follower].served

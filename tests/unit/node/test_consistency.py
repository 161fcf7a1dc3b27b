"""Replicas compare their state in the background: what reports say, and that altered data is found and named (S28)."""

from __future__ import annotations

from functools import partial

from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.consistency import KEPT, VERDICT_MS, Consistency, Verdict
from nebuladb.node.keyspaces import Spec, create_step, drop_step
from nebuladb.node.meta import FIRST_GROUP
from nebuladb.node.options import NodeOptions
from nebuladb.shard import Partitioning
from nebuladb.storage.engine import Batch
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

NODES = {1: 11, 2: 12, 3: 13}
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
EVERY = 20_000


def told(book: Consistency, *reports: tuple[int, bytes], index: int = 5) -> list[Verdict | None]:
    return [book.report(2, NODES, replica, index, digest, 0) for replica, digest in reports]


def test_all_the_same_is_said_when_all_have_reported() -> None:
    assert told(Consistency(0, 0), (1, A), (2, A), (3, A)) == [None, None, Verdict(2, 5, ())]


def test_a_majority_names_who_deviates() -> None:
    assert told(Consistency(0, 0), (1, B), (2, A), (3, A)) == [None, None, Verdict(2, 5, (1,))]


def test_without_a_majority_nobody_is_named_alone() -> None:
    assert told(Consistency(0, 0), (1, A), (2, B), (3, C))[-1] == Verdict(2, 5, (1, 2, 3), certain=False)


def test_a_difference_is_told_though_a_replica_stays_silent() -> None:
    book = Consistency(0, 0)
    told(book, (1, A), (2, B))
    assert book.late(VERDICT_MS - 1) == []
    assert book.late(VERDICT_MS) == [Verdict(2, 5, (1, 2), certain=False)]
    assert book.late(VERDICT_MS) == []


def test_reports_are_bounded_and_strangers_are_ignored() -> None:
    book = Consistency(0, 0)
    assert told(book, (9, A)) == [None]
    for index in range(KEPT + 1):
        told(book, (1, A), index=index)
    assert told(book, (2, A), (3, A), index=0) == [None, None]


def alter(trio: Trio, place: int) -> None:
    """Another value lies in the newest record of `k` than was written."""
    store = trio.node(place).groups[DEFAULT_GROUP].store
    row = store._keys.current + b"k"
    data = trio.machines[place].data
    old = data.get(row)
    assert old is not None
    batch = Batch()
    batch.put(row, old[:-1] + b"X")
    data.write(batch)


def checked(trio: Trio) -> None:
    for _ in range(2 * EVERY // 1_000):
        trio.run(1_000)
        for machine in trio.running:
            assert machine.node is not None
            while machine.node.background():
                pass


def test_altered_data_on_one_node_raises_an_alarm_on_all_that_names_shard_and_node() -> None:
    trio = Trio.started(options=NodeOptions(check=EVERY))
    trio.node(0).submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"k", b"value")), trio.time + 10_000)
    checked(trio)
    assert [trio.node(place).alarms() for place in range(3)] == [[], [], []]
    alter(trio, 1)
    # Nothing new has come in since the last check, and a shard in which nothing happens is left in peace.
    trio.node(0).submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"other", b"value")), trio.time + 10_000)
    checked(trio)
    for place in range(3):
        (alarm,) = trio.node(place).alarms()
        assert "shard 2 of keyspace 'default'" in alarm
        assert "the data on n2 differs" in alarm
        assert trio.node(place).alarms_now.counts()["inconsistent"] == 1


def test_the_alarm_of_a_shard_ends_with_the_shard() -> None:
    trio = Trio.started()
    trio.drive(0, partial(create_step, spec=Spec("h", Partitioning.SINGLE)))
    trio.until(lambda: FIRST_GROUP in trio.node(0).host.replicas, "made")
    trio.node(0)._upkeep._judged(Verdict(FIRST_GROUP, 7, (trio.node(0).host.replicas[FIRST_GROUP].id,)))
    assert trio.node(0).alarms()
    trio.drive(0, partial(drop_step, name="h"))
    trio.until(lambda: FIRST_GROUP not in trio.node(0).host.replicas, "gone")
    assert trio.node(0).alarms() == []


def test_a_shard_in_which_nothing_happens_is_not_woken() -> None:
    trio = Trio.started(options=NodeOptions(check=EVERY))
    checked(trio)
    before = [trio.node(0).host.replicas[group].raft.commit for group in (1, 2, 3)]
    checked(trio)
    assert [trio.node(0).host.replicas[group].raft.commit for group in (1, 2, 3)] == before

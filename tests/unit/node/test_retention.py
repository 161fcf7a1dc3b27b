"""Auto-compaction: what a rule means, when a leader compacts, and that only it does."""

from __future__ import annotations

import pytest

from nebuladb.errors import ConfigurationError, Corruption
from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.kv.command import Command, Kind
from nebuladb.node.keyspaces import transaction
from nebuladb.node.options import NodeOptions
from nebuladb.node.retention import META_RULE, MIN_STEP, Compactor, Retention, Rule, milliseconds
from tests.unit.node.trio import Trio
from tests.unit.node.wire import put_request

HOUR = 3_600_000


@pytest.mark.parametrize(
    ("text", "mode", "rule"),
    [
        ("0", "periodic", Rule()),
        ("0", "revision", Rule()),
        ("2", "periodic", Rule(period=2 * HOUR)),
        ("1000", "revision", Rule(revisions=1_000)),
        ("1h30m", "periodic", Rule(period=HOUR + HOUR // 2)),
        ("90s", "revision", Rule(period=90_000)),
    ],
)
def test_a_number_means_what_the_mode_says_and_a_time_is_a_time(text: str, mode: str, rule: Rule) -> None:
    assert Retention.parse(text, mode) == Retention(rule)
    assert bool(Retention.parse(text, mode)) == (rule != Rule())


def test_a_keyspace_may_have_a_rule_of_its_own() -> None:
    retention = Retention.parse("1h, users=10m,etcd=0", "periodic")
    assert retention.of("default") == Rule(period=HOUR)
    assert retention.of("users") == Rule(period=600_000)
    assert retention.of("etcd") == Rule()
    assert Retention.parse("etcd=5", "revision") == Retention(Rule(), (("etcd", Rule(revisions=5)),))


@pytest.mark.parametrize("text", ["", "1x", "-1", "1h,2h", "a=1,a=2", "m", "a=", "=1h", "1h,=2h", "9" * 5000])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Retention.parse(text, "periodic")


def test_a_number_without_a_unit_is_no_time() -> None:
    with pytest.raises(ConfigurationError, match="'5' is no time with units, like 90s"):
        milliseconds("5")
    assert milliseconds("0") == 0


def write(trio: Trio, group: int, count: int) -> None:
    """So many revisions, through whoever leads."""
    place = trio.leader(group)
    assert place is not None
    for _ in range(count):
        trio.node(place).submit(group, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 10_000)
    trio.run(500)


def floors(trio: Trio, group: int) -> list[int]:
    return [trio.node(place).groups[group].store.floor for place in range(3)]


def test_revisions_beyond_those_kept_are_compacted_on_every_replica_and_deleted() -> None:
    trio = Trio.started(options=NodeOptions(retention=Retention.parse("50,etcd=0", "revision")))
    write(trio, DEFAULT_GROUP, 148)
    write(trio, ETCD_GROUP, 148)
    trio.run(3_000)
    assert floors(trio, DEFAULT_GROUP) == [0, 0, 0], "a step of history may gather first"
    write(trio, DEFAULT_GROUP, 1)
    trio.run(3_000)
    assert floors(trio, DEFAULT_GROUP) == [100, 100, 100]
    assert floors(trio, ETCD_GROUP) == [0, 0, 0]
    for place in range(3):
        while trio.node(place).background():
            pass
        assert not trio.node(place).groups[DEFAULT_GROUP].store.busy


def test_of_the_meta_group_little_history_is_kept_whatever_the_rule() -> None:
    """Nobody could give it up: each keyspace that was made and dropped left rows there, on every node, for ever."""
    assert Retention().meta == Retention.parse("users=1h", "periodic").meta == META_RULE
    assert Retention.parse("1h,users=0", "periodic").meta == Rule(period=HOUR)
    trio = Trio.started()
    for number in range(2 * META_RULE.revisions):
        trio.step(0, transaction({}, {b"test/%d" % number: b"v", b"test/%d" % (number - 1): None}))
    revision = trio.node(0).groups[META_GROUP].store.revision
    trio.run(3_000)
    found = floors(trio, META_GROUP)
    assert min(found) == max(found) >= revision - META_RULE.revisions - MIN_STEP
    assert found[0] <= revision - META_RULE.revisions
    assert floors(trio, DEFAULT_GROUP) == [0, 0, 0]
    trio.crash(0)
    trio.start(0)
    trio.run(3_000)
    assert trio.node(0).meta.nodes.keys() == trio.node(1).meta.nodes.keys()


def test_a_shard_is_compacted_by_its_leader_alone() -> None:
    trio = Trio.started()
    write(trio, DEFAULT_GROUP, 200)
    retention = Retention.parse("50", "revision")
    due = [
        Compactor(retention, trio.time).due(node.host, node.groups, node.meta.shards, trio.time)
        for node in map(trio.node, range(3))
    ]
    assert [DEFAULT_GROUP in dict(one) for one in due] == [place == trio.leader(DEFAULT_GROUP) for place in range(3)]


def test_a_shard_of_an_unknown_keyspace_is_left_alone() -> None:
    """A node that was restarted, led it, and hadn't heard of its keyspace, whose history is to be kept, compacted it by
    the rule of all others."""
    trio = Trio.started(options=NodeOptions(retention=Retention.parse("50,etcd=0", "revision")))
    write(trio, ETCD_GROUP, 200)
    leader = trio.leader(ETCD_GROUP)
    assert leader is not None
    node = trio.node(leader)
    compactor = node._upkeep._compactor
    assert compactor.due(node.host, node.groups, node.meta.shards, trio.time) == []
    assert compactor.due(node.host, node.groups, {}, trio.time) == []


def test_history_is_kept_for_its_period_and_a_new_leader_has_counted_too() -> None:
    trio = Trio.started(options=NodeOptions(retention=Retention.parse("60s", "periodic")))
    write(trio, DEFAULT_GROUP, 9)
    trio.run(40_000)
    write(trio, DEFAULT_GROUP, 10)
    leader = trio.leader(DEFAULT_GROUP)
    assert leader is not None
    trio.crash(leader)
    trio.run(10_000)
    assert max(machine.node.groups[DEFAULT_GROUP].store.floor for machine in trio.running if machine.node) <= 1
    trio.run(25_000)
    others = [machine.node.groups[DEFAULT_GROUP].store.floor for machine in trio.running if machine.node]
    assert others == [10, 10]
    trio.run(70_000)
    others = [machine.node.groups[DEFAULT_GROUP].store.floor for machine in trio.running if machine.node]
    assert others == [20, 20]
    logged = [machine.node.groups[DEFAULT_GROUP].store.index for machine in trio.running if machine.node]
    trio.run(70_000)
    assert logged == [machine.node.groups[DEFAULT_GROUP].store.index for machine in trio.running if machine.node], (
        "an idle shard is not compacted again and again"
    )


def test_a_shard_whose_data_is_about_to_be_replaced_is_left_alone() -> None:
    """Its store is still there, and its replica is not, until the disk has the word (found by a mutant's seed)."""
    trio = Trio.started(options=NodeOptions(retention=Retention.parse("60s", "periodic")))
    write(trio, DEFAULT_GROUP, 9)
    node = trio.node(0)
    trio.hung.add(0)
    node.damaged(DEFAULT_GROUP, Corruption("for the test"))
    assert DEFAULT_GROUP in node.groups
    assert DEFAULT_GROUP not in node.host.replicas
    trio.run(70_000)  # what is older than a minute is due
    assert DEFAULT_GROUP not in node.host.replicas
    trio.hung.clear()
    trio.run(5_000)
    assert DEFAULT_GROUP in node.host.replicas

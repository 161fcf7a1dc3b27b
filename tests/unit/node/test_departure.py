"""A node leaves while clients write through it: none of them is left in doubt (S19)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nebuladb.env import probe
from nebuladb.errors import Corruption, Outcome, Unavailable
from nebuladb.ids import DEFAULT_GROUP, META_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.departure import departs
from nebuladb.node.members import add_step, remove_step, replace_step
from nebuladb.node.node import Node
from nebuladb.node.options import NodeOptions, SnapshotLimits
from nebuladb.node.record import NodeState
from nebuladb.node.tail import TailLimits
from nebuladb.raft import Configuration, MessageType
from nebuladb.shard import Descriptor, Role
from tests.unit.node.trio import Trio
from tests.unit.node.wire import decode_frame, put_request

OWN = 1


def shard(**roles: Role) -> Descriptor:
    """Replicas 1 to 4 on nodes 11 to 14, voters but for `r4=Role.JOINING` and the like."""
    found = Descriptor(2, "default", 1, b"", b"", (0, 0), tuple((number, 10 + number) for number in range(1, 5)))
    for name, role in roles.items():
        found = found.with_role(int(name[1:]), 10 + int(name[1:]), role)
    return found


@pytest.mark.parametrize(
    ("descriptor", "configuration", "goes"),
    [
        (shard(), Configuration((1, 2, 3)), False),
        (shard(r4=Role.JOINING), Configuration((1, 2, 3), learners=(4,)), False),
        (shard(r2=Role.LEAVING), Configuration((1, 2, 3)), False),
        (shard(r1=Role.LEAVING), Configuration((1, 2, 3)), True),
        (shard(r1=Role.LEAVING, r4=Role.LEARNER), Configuration((1, 2, 3), learners=(4,)), True),
        (shard(r1=Role.LEAVING, r4=Role.JOINING), Configuration((1, 2, 3), learners=(4,)), False),
        (shard(r1=Role.LEAVING, r4=Role.JOINING), Configuration((2, 3, 4), (1, 2, 3)), True),
        (shard(r1=Role.LEAVING, r4=Role.JOINING), Configuration((2, 3), learners=(1, 4)), True),
        (shard(r1=Role.LEAVING, r4=Role.JOINING), None, True),
        (shard(r1=Role.LEAVING).without(1), Configuration((2, 3)), False),
    ],
)
def test_who_leaves_takes_writes_until_nothing_holds_it(
    descriptor: Descriptor, configuration: Configuration | None, goes: bool
) -> None:
    assert departs(descriptor, 10 + OWN, configuration) is goes


def told(place: int, *, replaced: bool, refuses: Callable[[Node], bool]) -> list[object]:
    """What clients of the node at `place` are told, who write all the while it leaves, three every tick; with `refuses`
    they are told nothing, for they ask elsewhere."""
    trio = Trio.started()
    trio.run(3_000)
    machine, through = trio.machines[place], (place + 1) % 3
    requests: list[int] = []

    def gone() -> bool:
        for _ in range(3 if machine.node is not None else 0):
            assert machine.node is not None
            if not refuses(machine.node):
                command = Command(Kind.PUT, put_request(b"k", b"v"))
                try:
                    requests.append(machine.node.submit(DEFAULT_GROUP, command, trio.time + 5_000))
                except Unavailable:
                    break  # it has no replica any more
        return trio.state(place, through) is NodeState.REMOVED

    if replaced:
        name = trio.who[place].name
        trio.drive(through, lambda meta: replace_step(meta, name, "new", "new:2", 77))
        trio.join("new", through)
    else:
        nodes = {founder.node for founder in trio.who}
        trio.drive(through, lambda meta: remove_step(meta, trio.founding, trio.who[place].name, nodes))
    trio.until(gone, "it has left")
    return [machine.answers.get(request) for request in requests]


def hesitates(node: Node) -> bool:
    """As ``api.Backend``."""
    descriptor = node.meta.descriptor(DEFAULT_GROUP)
    replica = node.host.replicas.get(DEFAULT_GROUP)
    assert descriptor is not None
    return departs(descriptor, node.identity.node, replica.raft.configuration if replica else None)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_write_that_a_leaving_node_takes_is_answered(place: int, replaced: bool) -> None:
    answers = told(place, replaced=replaced, refuses=hesitates)
    assert answers
    assert all(isinstance(answer, Answer) for answer in answers), answers


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_leader_takes_nothing_more_from_who_goes(replaced: bool) -> None:
    """So what comes in between has certainly failed, whatever the leaving node knows of it."""
    answers = told(0, replaced=replaced, refuses=lambda node: False)
    refused = [answer for answer in answers if not isinstance(answer, Answer)]
    assert refused
    assert all(isinstance(error, Unavailable) and error.outcome is Outcome.FAILED for error in refused), refused


def cut(place: int) -> Trio:
    """The node at `place` leads `default`, whose log is cut: who isn't there yet gets a snapshot, for five seconds."""
    snapshots = SnapshotLimits(rate=200 << 10)
    trio = Trio.started(options=NodeOptions(tail=TailLimits(entries=5, cut_entries=2), snapshots=snapshots))
    lead(trio, DEFAULT_GROUP, place)
    for number in range(20):
        put = put_request(b"%d" % number, random.Random(number).randbytes(50_000))
        trio.node(place).submit(DEFAULT_GROUP, Command(Kind.PUT, put), trio.time + 20_000)
        trio.run(50)
    trio.run(4_000)
    return trio


def test_a_leader_that_leaves_hands_over_to_nobody_without_data() -> None:
    """It handed over, again and again, to one that waits for a snapshot: its log is whole, and it doesn't campaign."""
    trio = cut(2)
    trio.node(0).damaged(DEFAULT_GROUP, Corruption("for the test"))
    trio.until(lambda: DEFAULT_GROUP in trio.node(0).snapshots.incoming, "its data is gone")
    before = probe.hits["leadership transfer given up"]
    trio.drive(1, lambda meta: remove_step(meta, trio.founding, "n3", {founder.node for founder in trio.who}))
    trio.until(lambda: trio.leader(DEFAULT_GROUP) == 1, "the one that has data leads")
    assert trio.node(0).host.replicas[DEFAULT_GROUP].lost
    assert probe.hits["leadership transfer given up"] == before


def lead(trio: Trio, group: int, place: int) -> None:
    """Have the node at `place` lead `group`."""
    if (leader := trio.leader(group)) not in (place, None):
        assert leader is not None
        trio.node(leader).host.transfer_leadership(group, trio.who[place].node)
    trio.until(lambda: trio.leader(group) == place, "it leads")


def test_nobody_is_destroyed_before_those_who_stay_know_that_it_is_gone() -> None:
    """Voters n1 to n4, and n4 goes. n1, n2 and n4 have the change, of which n2 doesn't know that it is committed, when
    n1 dies for good. n2 and n3 are two of the three who stay, and n2 asks by the configuration that it knows."""
    trio = Trio.started()
    trio.drive(0, lambda meta: add_step(meta, "n4", "n4:2", 77))
    place = trio.join("n4")
    trio.until(lambda: trio.state(place) is NodeState.MEMBER, "four")
    lead(trio, DEFAULT_GROUP, 0)
    lead(trio, META_GROUP, 2)
    n1, n2, n3, _ = (founder.node for founder in trio.who)
    parted = False

    def lose(sender: int, receiver: int, frame: bytes) -> bool:
        nonlocal parted
        node = trio.machines[0].node
        if node is None:
            return False
        parted |= len(node.host.replicas[DEFAULT_GROUP].raft.configuration.voters) == 3
        if (sender, receiver) == (n1, n3):  # n3 answers, so that n1 leads on, and lacks what n1 appends
            envelopes = decode_frame(frame)[1]
            return any(one.group == DEFAULT_GROUP and one.message.type == MessageType.APPEND for one in envelopes)
        return parted and {sender, receiver} == {n1, n2}

    trio.lose = lose
    trio.drive(0, lambda meta: remove_step(meta, trio.founding, "n4", {n1, n2, n3}))
    trio.until(lambda: parted, "the change is committed")
    trio.run(5_000)
    trio.crash(0)
    trio.until(lambda: trio.leader(DEFAULT_GROUP) in (1, 2), "two of the three elect")
    trio.until(lambda: trio.machines[3].node is None or DEFAULT_GROUP not in trio.node(3).host.replicas, "n4's is gone")


def test_a_node_that_left_meta_votes_until_the_one_that_stays_has_it_on_its_disk() -> None:
    """Of two, n2 leaves; it stopped as soon as it had applied that, while a power cut of n1 could still undo it there:
    n1 asked for the vote of one that must not come back, for ever."""
    trio = Trio.started(2)
    for group in (META_GROUP, DEFAULT_GROUP, DEFAULT_GROUP + 1):
        lead(trio, group, 0)
    alone = False

    def lose(sender: int, receiver: int, frame: bytes) -> bool:
        nonlocal alone
        node = trio.machines[0].node
        if not alone and node is not None and len(node.host.replicas[META_GROUP].raft.configuration.voters) == 1:
            alone = True
            trio.unsynced.add(0)
        return False

    trio.lose = lose
    trio.drive(0, lambda meta: remove_step(meta, trio.founding, "n2", {founder.node for founder in trio.who}))
    trio.until(lambda: alone, "n1 alone is in force")
    trio.run(1_000)
    trio.crash(0)
    trio.unsynced.clear()
    trio.start(0)
    trio.until(lambda: trio.leader(META_GROUP) == 0, "n1 leads again")
    trio.until(lambda: trio.state(1) is NodeState.REMOVED, "n2 is gone")


def test_writes_through_a_node_that_waits_for_a_snapshot_are_refused_at_once() -> None:
    """All were done at the leader, and ended unknown: no snapshot has the answers."""
    trio = cut(0)
    trio.drive(0, lambda meta: add_step(meta, "n4", "n4:2", 77))
    newcomer = trio.node(trio.join("n4"))
    trio.until(lambda: DEFAULT_GROUP in newcomer.snapshots.incoming, "a snapshot comes")
    with pytest.raises(Unavailable, match="nothing was done; ask another node"):
        newcomer.submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 1_000)
    trio.until(lambda: DEFAULT_GROUP not in newcomer.snapshots.incoming, "it is in")
    request = newcomer.submit(DEFAULT_GROUP, Command(Kind.PUT, put_request(b"k", b"v")), trio.time + 1_000)
    trio.run(1_000)
    assert isinstance(trio.machines[3].answers[request], Answer)

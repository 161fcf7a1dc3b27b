"""A node leaves while clients write through it: none of them is left in doubt (S19)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nebuladb.errors import Outcome, Unavailable
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.kv.answer import Answer
from nebuladb.kv.command import Command, Kind
from nebuladb.node.departure import departs
from nebuladb.node.members import remove_step, replace_step
from nebuladb.node.node import Node, put_request
from nebuladb.node.record import NodeState
from nebuladb.raft import Configuration
from nebuladb.shard import Descriptor, Role
from tests.unit.node.trio import Trio

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
    trio = Trio()
    trio.start()
    trio.founded()
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

"""A replica that alone votes, beside learners, and whose data is damaged: nobody can lead, nor send it a snapshot."""

from __future__ import annotations

import pytest

from nebuladb.errors import Corruption
from nebuladb.ids import DEFAULT_GROUP
from nebuladb.node.members import add_step
from nebuladb.node.registry import GroupState, RegistryRow
from nebuladb.node.starting import cure_of
from nebuladb.raft import Configuration
from tests.unit.node.trio import Trio


def test_its_data_stays_whatever_learners_have() -> None:
    """It gave up what was sound of it for a snapshot that never came; a learner gets one."""
    trio = Trio.started(1)
    trio.drive(0, lambda meta: add_step(meta, "n2", "n2:2", 88, learner=True))
    learner = trio.join("n2")
    trio.until(lambda: DEFAULT_GROUP in trio.node(learner).groups, "it has the group")
    voter = trio.node(0).host.replicas[DEFAULT_GROUP]
    trio.until(lambda: bool(voter.raft.configuration.learners), "a learner")
    with pytest.raises(Corruption):
        trio.node(0).damaged(DEFAULT_GROUP, Corruption("for the test"))
    assert trio.leader(DEFAULT_GROUP) == 0
    trio.node(learner).damaged(DEFAULT_GROUP, Corruption("for the test"))
    trio.settle()
    assert trio.node(learner).snapshots.lost
    trio.until(lambda: not trio.node(learner).snapshots.lost, "a snapshot is in")


def test_without_data_it_is_told_of_those_that_do_not_vote() -> None:
    """It said that it waits for a snapshot."""
    replicas, initial = ((1, 11), (2, 12)), (1, 1)
    row = RegistryRow(GroupState.INSTALLING, 1, 1, initial, 5, replicas, Configuration((1,), (), (2,)))
    assert "no other node that votes has it: `nebulad recover` one" in cure_of(row)
    assert "waits for a snapshot" in cure_of(row._replace(replica=2))
    assert "waits for a snapshot" in cure_of(row._replace(configuration=Configuration((1,), (1, 2))))

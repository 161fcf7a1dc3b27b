"""Whether a learner has nearly everything: every shard's leader is asked, and only leaders know (etcd 52)."""

from __future__ import annotations

import pytest

from nebuladb.ids import DEFAULT_GROUP, ETCD_GROUP, META_GROUP
from nebuladb.node.catch_up import Lag, in_sync, lags_led
from nebuladb.node.members import add_step
from nebuladb.raft import MessageType
from tests.unit.node.test_members import put
from tests.unit.node.trio import Trio
from tests.unit.node.wire import decode_frame

GROUPS = (META_GROUP, DEFAULT_GROUP, ETCD_GROUP)
WRITES = 60


class Class(Trio):
    """Three nodes, one of which leads `default` and not the meta group, and a learner."""

    def __init__(self) -> None:
        super().__init__(3)
        self.start()
        self.founded()
        self.drive(0, lambda meta: add_step(meta, "n4", "n4:2", 14, learner=True))
        self.learner = self.join("n4")
        self.id = self.who[self.learner].node
        self.until(lambda: self.knows(0, 1, 2), "it has everything")
        if self.leader(DEFAULT_GROUP) == self.leader(META_GROUP):
            leader = self.leader(META_GROUP)
            assert leader is not None
            other = (leader + 1) % 3
            self.node(leader).host.transfer_leadership(DEFAULT_GROUP, self.who[other].node)
            self.until(lambda: self.leader(DEFAULT_GROUP) == other, "another one leads")
            self.until(lambda: self.knows(0, 1, 2), "the new leader has heard of it")

    def lags(self, *places: int) -> list[Lag]:
        return [lag for place in places for lag in lags_led(self.node(place).host, self.id)]

    def knows(self, *places: int) -> bool:
        return in_sync(self.node(0).meta, self.founding, self.id, self.lags(*places))


def test_a_learner_is_in_sync_when_the_leader_of_every_shard_says_so() -> None:
    nodes = Class()
    leader = nodes.leader(DEFAULT_GROUP)
    assert leader is not None
    others = [place for place in range(3) if place != leader]
    assert {lag.group for lag in nodes.lags(0, 1, 2)} == set(GROUPS)
    assert not nodes.knows(*others), "of a shard whose leader says nothing nobody knows"

    def held_back(sender: int, receiver: int, frame: bytes) -> bool:
        return receiver == nodes.id and any(
            envelope.group == DEFAULT_GROUP and envelope.message.type == MessageType.APPEND
            for envelope in decode_frame(frame)[1]
        )

    nodes.lose = held_back
    for number in range(WRITES):
        put(nodes, b"%d" % number, leader)
    nodes.run(1_000)
    behind = {lag.group for lag in nodes.lags(0, 1, 2) if (lag.last - lag.lacks) * 100 < lag.last * 90}
    assert behind == {DEFAULT_GROUP}
    assert not nodes.knows(0, 1, 2), "though it has all of what the others lead"
    nodes.lose = lambda sender, receiver, frame: False
    nodes.until(lambda: nodes.knows(0, 1, 2), "it has caught up")


def test_a_learner_that_is_away_is_not_in_sync() -> None:
    nodes = Class()
    nodes.crash(nodes.learner)
    assert nodes.lags(0, 1, 2) == []
    assert not nodes.knows(0, 1, 2)


@pytest.mark.parametrize(("lacks", "enough"), [(0, True), (10, True), (11, False), (100, False)])
def test_the_newest_leaders_word_counts(lacks: int, enough: bool) -> None:
    nodes = Class()
    meta = nodes.node(0).meta
    fine = [Lag(group, 5, 100, 0) for group in (META_GROUP, ETCD_GROUP)]
    for old in (0, 100):
        words = [Lag(DEFAULT_GROUP, 5, 100, lacks), Lag(DEFAULT_GROUP, 4, 100, old)]
        for said in (words, words[::-1]):
            assert in_sync(meta, nodes.founding, nodes.id, [*fine, *said]) is enough
    assert not in_sync(meta, nodes.founding, 99, [*fine, Lag(DEFAULT_GROUP, 5, 100, 0)]), "it has no replicas"

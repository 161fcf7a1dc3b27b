"""Where replicas should be, and what a leader does next: decisions, and plays of them against a model of a group."""

from __future__ import annotations

import random

import pytest

from nebuladb.raft import Configuration
from nebuladb.raft.confchange import Change, Changer, ChangeType
from nebuladb.shard import Descriptor, Role
from nebuladb.shard.membership import MAX_VOTERS, Decision, Standing, decide, revision, settled, wanted

SHARD = Descriptor(2, "default", 1, b"", b"", (0, 0), ((4, 11), (5, 12), (6, 13)))
VOTERS = Configuration((4, 5, 6))


def nodes(*ids: int) -> list[Standing]:
    return [Standing(node) for node in ids]


def voting(shard: Descriptor, standings: list[Standing]) -> set[int]:
    return {node for node, role in wanted(shard, standings).items() if role is Role.VOTER}


@pytest.mark.parametrize("count", range(1, 9))
def test_every_node_has_a_replica_and_five_of_them_vote(count: int) -> None:
    found = wanted(SHARD, nodes(*range(11, 11 + count)))
    assert set(found) == set(range(11, 11 + count))
    assert sorted(found.values()) == [Role.LEARNER] * (count - MAX_VOTERS) + [Role.VOTER] * min(count, MAX_VOTERS)


def test_who_votes_stays_where_it_is() -> None:
    assert voting(SHARD, nodes(*range(1, 30))) > {11, 12, 13}
    assert wanted(SHARD, nodes(11, 12, 13)) == dict.fromkeys((11, 12, 13), Role.VOTER)


def test_six_founders_all_go_on_voting_when_a_seventh_node_comes() -> None:
    """Their replicas were taken away from one, which answered nothing any more."""
    six = SHARD._replace(replicas=tuple((node - 7, node) for node in range(11, 17)))
    change = revision(six, wanted(six, nodes(*range(11, 18))))
    assert change == ((), ((17, Role.LEARNER),))


def test_votes_spread_over_more_nodes_than_they_need() -> None:
    empty = SHARD._replace(replicas=())
    chosen = [frozenset(voting(empty._replace(group=group), nodes(*range(1, 8)))) for group in range(4, 11)]
    assert len(set(chosen)) == 7


def test_a_learner_takes_the_vote_of_a_node_that_leaves() -> None:
    seven = SHARD._replace(replicas=tuple((node - 7, node) for node in range(11, 18)))
    seven = seven.with_role(9, 16, Role.LEARNER).with_role(10, 17, Role.LEARNER)
    change = revision(seven, wanted(seven, nodes(11, 12, 14, 15, 16, 17)))
    assert change.added == ()
    assert sorted((node, role) for _, node, role in change.roles)[0] == (13, Role.LEAVING)
    assert [role for _, node, role in change.roles if node in (16, 17)] == [Role.JOINING]


def test_who_shall_not_vote_yet_learns() -> None:
    found = wanted(SHARD, [*nodes(11, 12, 13), Standing(14, votes=False)])
    assert found[14] is Role.LEARNER
    changed = SHARD.with_role(9, 14, Role.LEARNER)
    assert revision(changed, wanted(changed, nodes(11, 12, 13, 14))).roles == ((9, 14, Role.JOINING),)


def test_a_revision_adds_and_lets_go_and_never_brings_back() -> None:
    change = revision(SHARD, wanted(SHARD, nodes(12, 13, 14)))
    assert change.roles == ((4, 11, Role.LEAVING),)
    assert change.added == ((14, Role.JOINING),)
    leaving = SHARD.with_role(4, 11, Role.LEAVING)
    assert not revision(leaving, wanted(leaving, nodes(11, 12, 13)))
    assert not revision(SHARD, wanted(SHARD, nodes(11, 12, 13)))


REPLACED = SHARD.with_role(4, 11, Role.LEAVING).with_role(9, 14, Role.JOINING)


def test_a_replacement_is_a_learner_then_one_joint_change() -> None:
    assert decide(REPLACED, VOTERS, 5).changes == (Change(ChangeType.ADD_LEARNER, 9),)
    learning = VOTERS._replace(learners=(9,))
    assert decide(REPLACED, learning, 5, lambda _: False) == Decision()
    swap = decide(REPLACED, learning, 5)
    assert swap.changes == (Change(ChangeType.ADD_VOTER, 9), Change(ChangeType.REMOVE, 4))
    reported = decide(REPLACED, Configuration((5, 6, 9)), 5).report
    assert reported is not None
    assert (dict(reported.replicas), reported.roles) == ({5: 12, 6: 13, 9: 14}, ())


def test_a_leader_that_leaves_hands_over_and_does_not_remove_itself() -> None:
    learning = VOTERS._replace(learners=(9,))
    assert decide(REPLACED, learning, 4).changes == (Change(ChangeType.ADD_VOTER, 9),)
    leaving = SHARD.with_role(4, 11, Role.LEAVING)
    assert decide(leaving, VOTERS, 4, heirs=(6, 5)).heir == 6
    assert not decide(leaving, VOTERS, 4)


def test_nobody_is_removed_by_absence() -> None:
    """A descriptor that doesn't list a replica may be an old one (S17)."""
    assert not decide(SHARD, Configuration((4, 5, 6, 9)), 5)


def test_settled_is_never_wrong_about_a_decision() -> None:
    for shard in (SHARD, REPLACED, SHARD.with_role(9, 14, Role.LEARNER), SHARD.with_role(4, 11, Role.LEAVING)):
        for configuration in (VOTERS, VOTERS._replace(learners=(9,)), Configuration((5, 6, 9)), Configuration((5, 6))):
            if settled(shard, configuration):
                assert not decide(shard, configuration, 5)


@pytest.mark.parametrize("seed", range(40))
def test_every_wish_comes_true_one_safe_change_at_a_time(seed: int) -> None:
    """Nodes come and go as the seed says; leaders change, and learners take their time. Two configurations in a row
    always share a majority, and in the end each group is what is wanted."""
    rng = random.Random(seed)
    shard, configuration, issued, leader = SHARD, VOTERS, 100, 4
    active = {11, 12, 13}
    for step in range(200):
        if step < 120 and rng.random() < 0.1:
            if len(active) > 2 and rng.random() < 0.5:
                active.discard(rng.choice(sorted(active)))
            else:
                active.add(20 + step)
        change = revision(shard, wanted(shard, nodes(*active)))
        for replica, node, role in change.roles:
            shard = shard.with_role(replica, node, role)
        for node, role in change.added:
            shard, issued = shard.with_role(issued, node, role), issued + 1
        if rng.random() < 0.2 or leader not in configuration.voters:
            leader = rng.choice(configuration.voters)
        heirs = [voter for voter in configuration.voters if voter != leader]
        lazy = step < 150
        found = decide(shard, configuration, leader, lambda _: not lazy or rng.random() < 0.5, heirs)  # noqa: B023
        if found.report is not None:
            shard = found.report
        elif found.heir:
            leader = found.heir
        elif found.changes:
            changer = Changer(configuration)
            target = changer.enter_joint(found.changes, auto_leave=True)
            assert leader in target.voters
            configuration = Changer(target).leave_joint()
        assert set(configuration.voters) | set(configuration.learners) <= set(dict(shard.replicas))
    assert {node for _, node in shard.replicas} == active
    learners = dict(shard.roles)
    assert set(learners.values()) <= {Role.LEARNER}
    assert configuration.learners == tuple(sorted(learners))
    assert configuration.voters == tuple(sorted(set(dict(shard.replicas)) - set(learners)))
    assert len(configuration.voters) == min(len(active), MAX_VOTERS)

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepsen.partitions import Shape, blocked
from jepsen.schedule import QUIET_END, TIMINGS, Change, Fault, plan, victims

KINDS = sorted(TIMINGS)


@given(st.integers(), st.sets(st.sampled_from(KINDS), min_size=1), st.floats(5, 90), st.integers(3, 5))
def test_faults_of_a_kind_follow_each_other_and_end_in_time(
    seed: int, kinds: set[str], seconds: float, nodes: int
) -> None:
    faults = plan(sorted(kinds), seconds, nodes, Random(seed))
    assert {fault.kind for fault in faults} == kinds
    assert faults == sorted(faults, key=lambda fault: fault.start)
    for kind in kinds:
        end = 0.0
        for fault in (fault for fault in faults if fault.kind == kind):
            assert end < fault.start < seconds - QUIET_END
            end = fault.start + fault.length
            assert end <= seconds + 1e-9
            assert sorted(fault.order) == list(range(nodes))
            assert 1 <= fault.count <= nodes


def test_the_same_seed_draws_the_same_faults() -> None:
    assert plan(KINDS, 60, 3, Random(4)) == plan(KINDS, 60, 3, Random(4))
    assert plan(KINDS, 60, 3, Random(4)) != plan(KINDS, 60, 3, Random(5))


def test_a_long_run_has_every_shape_of_partition() -> None:
    faults = plan(["partition"], 60, 3, Random(1))
    assert {fault.shape for fault in faults} == set(Shape)


def test_a_long_run_has_every_change_of_members_one_node_at_a_time() -> None:
    faults = plan(["churn"], 60, 3, Random(1))
    assert {fault.change for fault in faults} == set(Change)
    assert {fault.count for fault in faults} == {1}


def test_the_leader_comes_first_if_it_is_wanted_and_nobody_is_taken_twice() -> None:
    fault = Fault("kill", 0, 1, (2, 0, 1), 2, leader=True)
    assert victims(fault, 1, frozenset()) == [1, 2]
    assert victims(fault, 1, frozenset({1})) == [2, 0]
    assert victims(fault, None, frozenset()) == [2, 0]
    assert victims(fault, 1, frozenset({0, 1, 2})) == []


@pytest.mark.parametrize(
    ("shape", "pairs"),
    [
        (Shape.HALVES, {(0, 1), (1, 0), (0, 2), (2, 0)}),
        (Shape.FLAPPING, {(0, 1), (1, 0), (0, 2), (2, 0)}),
        (Shape.DEAF, {(1, 0), (2, 0)}),
        (Shape.MUTE, {(0, 1), (0, 2)}),
        (Shape.RING, {(1, 2), (2, 1)}),
    ],
)
def test_who_hears_whom_among_three(shape: Shape, pairs: set[tuple[int, int]]) -> None:
    assert blocked(shape, [0, 1, 2]) == pairs


def test_in_a_ring_of_five_each_hears_two() -> None:
    pairs = blocked(Shape.RING, [4, 2, 0, 1, 3])
    for node in range(5):
        assert len({source for source, target in pairs if target == node}) == 2
    assert all((b, a) in pairs for a, b in pairs)

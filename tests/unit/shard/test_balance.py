"""Who should lead: even, the same for all who know the same, and as few moves as possible."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nebuladb.shard import preferred

nodes = st.lists(st.integers(1, 50), unique=True, min_size=1, max_size=7).map(sorted)


@given(nodes, st.integers(4, 500), st.integers(1, 200), st.data())
def test_leaders_are_even_over_the_live_nodes_and_only_the_dead_ones_groups_move(
    nodes: list[int], first: int, count: int, data: st.DataObject
) -> None:
    groups = range(first, first + count)
    whole = {group: preferred(group, nodes, nodes, ()) for group in groups}
    loads = Counter(whole.values())
    assert max(loads.values()) - min(loads[node] for node in nodes) <= 1
    dead = data.draw(st.sampled_from(nodes))
    live = [node for node in nodes if node != dead]
    after = {group: preferred(group, nodes, live, [dead]) for group in groups}
    assert {group for group in groups if after[group] != whole[group]} == {g for g in groups if whole[g] == dead}
    if live:
        inherited = Counter(after[group] for group in groups if whole[group] == dead)
        assert max(inherited.values(), default=0) - min(inherited[node] for node in live) <= 1
    else:
        assert set(after.values()) == {0}


def test_a_home_of_which_nothing_is_certain_moves_nothing() -> None:
    assert preferred(4, [1, 2, 3], live=[1, 3], dead=[]) == 0
    assert preferred(5, [1, 2, 3], live=[1, 3], dead=[]) == 3
    assert preferred(4, [1, 2, 3], live=[1, 3], dead=[2]) in (1, 3)
    assert preferred(4, [], live=[1], dead=[]) == 0

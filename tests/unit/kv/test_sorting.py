"""What is sorted in stretches is as `sorted` gives it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.kv.sorting import RUN, in_order


def first(pair: tuple[int, int]) -> int:
    return pair[0]


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 7), st.booleans())
def test_equals_keep_their_order(numbers: list[int], run: int, reverse: bool) -> None:
    pairs = [(number, place) for place, number in enumerate(numbers)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nebuladb.kv.sorting.RUN", run)
        assert list(in_order(pairs, first, reverse=reverse)) == sorted(pairs, key=first, reverse=reverse)


def test_more_than_a_run_is_sorted_in_several() -> None:
    items = [(number * 7919) % 10_007 for number in range(3 * RUN)]
    assert list(in_order(items, int)) == sorted(items)

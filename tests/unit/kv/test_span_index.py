"""Ranges against a list of them that is gone through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.kv import span_index
from nebuladb.kv.check import TO_THE_LAST
from nebuladb.kv.span_index import SpanIndex

names = st.binary(min_size=1, max_size=2).map(lambda name: bytes(byte % 4 for byte in name))
ends = st.one_of(st.just(b"\0"), names)
spans = st.tuples(names, ends).filter(lambda span: span[1] == b"\0" or span[1] > span[0])
steps = st.lists(st.tuples(st.booleans(), spans, st.integers(0, 2)), max_size=60)


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether a key lies in a range of etcd's convention, which has an end."""
    return key >= start and (end == TO_THE_LAST or key < end)


@given(steps, st.lists(names, min_size=1), st.sampled_from([1, 2, 64]))
def test_a_key_finds_the_holders_of_all_ranges_that_hold_it(
    changes: list[tuple[bool, tuple[bytes, bytes], int]], keys: list[bytes], block: int
) -> None:
    before, span_index.BLOCK = span_index.BLOCK, block  # type: ignore[misc]
    try:
        index: SpanIndex[tuple[tuple[bytes, bytes], int]] = SpanIndex()
        there: set[tuple[tuple[bytes, bytes], int]] = set()
        for place, (add, span, number) in enumerate(changes):
            holder = span, number
            if add:
                there.add(holder)
                index.add(*span, holder)
            else:
                there.discard(holder)
                index.discard(*span, holder)
            key = keys[place % len(keys)]
            found = list(index.holding(key))
            assert len(found) == len(set(found))
            assert set(found) == {one for one in there if in_range(key, *one[0])}
            ranges = {one[0] for one in there}
            ended = [one for one in ranges if one[1] != TO_THE_LAST]
            most = max((sum(in_range(start, *one) for one in ended) for start, _ in ended), default=0)
            if len(ranges) <= block:
                assert index.depth == len(ranges)
            else:
                depth = index.depth - (len(ranges) - len(ended))
                assert most <= depth <= 2 * max(block, most + index._removed)
        assert bool(index) is bool(there)
    finally:
        span_index.BLOCK = before  # type: ignore[misc]


class Counted(bytes):
    """An end that counts how often it is compared."""

    compared = 0

    def __gt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return super().__gt__(other)

    __hash__ = bytes.__hash__


def test_one_that_comes_and_goes_costs_the_same_beside_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ends were compared for the first look-up after a change: beside 50,000 ranges that took 1 ms."""
    index: SpanIndex[int] = SpanIndex()
    for number in range(10_000):
        index.add(b"%05d" % number, Counted(b"%05dz" % number), number)
    monkeypatch.setattr(Counted, "compared", 0)
    index.add(b"00500", Counted(b"00500zz"), -1)
    assert list(index.holding(b"00500y")) == [500, -1]
    index.discard(b"00500", Counted(b"00500zz"), -1)
    assert list(index.holding(b"00500y")) == [500]
    assert Counted.compared < 1_000


def test_how_deep_they_lie_is_not_counted_for_each_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that makes a watch and cancels it, beside 50,000 others, and one that writes, cost 7 ms each time."""
    index: SpanIndex[int] = SpanIndex()
    for number in range(1_000):
        index.add(b"%04d" % number, b"%04dz" % number, number)
    counts = 0
    count = SpanIndex._count

    def counted(index: SpanIndex[int]) -> None:
        nonlocal counts
        counts += 1
        count(index)

    monkeypatch.setattr(SpanIndex, "_count", counted)
    for number in range(1_000):
        index.add(b"%04d" % number, b"%04dzz" % number, -1)
        assert 2 <= index.depth <= 2 * span_index.BLOCK
        index.discard(b"%04d" % number, b"%04dzz" % number, -1)
        assert 1 <= index.depth <= 2 * span_index.BLOCK
    assert counts <= 2 * 1_000 // span_index.BLOCK + 1

"""What watches hand to the transport has a bound for all of a node together, and who holds it up is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from nebuladb.api.deliveries import MEDIUM_BYTES, PACE_BYTES, PATIENCE_SECONDS, SMALL_BYTES, Deliveries, Delivery
from tests.unit.api.hands import Hands

MEDIUM = SMALL_BYTES + 1
LARGE = MEDIUM_BYTES + 1
LIMIT = 4 * 2 * LARGE
"""Two medium MiB, or six large deliveries."""
PATIENCE = PATIENCE_SECONDS + LARGE / PACE_BYTES


class Streams:
    """Of a node, and who of them was ended."""

    def __init__(self, count: int, limit: int = LIMIT) -> None:
        self.clock = Hands()
        self.deliveries = Deliveries(limit, self.clock)
        self.ended: list[int] = []
        self.all = [self.deliveries.stream(asyncio.Event(), self._ending(number)) for number in range(count)]

    def _ending(self, number: int) -> Callable[[], None]:
        return lambda: self.ended.append(number)

    def woken(self) -> list[int]:
        return [number for number, stream in enumerate(self.all) if stream.room.is_set()]


def test_those_that_do_not_fit_wait_in_order_and_small_ones_never() -> None:
    streams = Streams(10)
    stream = streams.all
    assert [one.admits(LARGE) for one in stream[:8]] == [True] * 6 + [False] * 2
    assert stream[8].admits(SMALL_BYTES)
    stream[0].give()
    assert streams.woken() == [6]
    assert not stream[7].admits(LARGE)
    stream[6].give()  # it has ended
    assert streams.woken() == [6, 7]
    assert stream[7].admits(LARGE)
    for one in stream:
        one.give()
    assert streams.deliveries.used == 0
    assert stream[0].admits(100 * LARGE)
    assert not stream[1].admits(LARGE)
    stream[0].give()
    assert stream[1].admits(LARGE)


def test_those_that_are_larger_than_the_bound_go_one_after_the_other() -> None:
    """Two that wait would else give their turn to each other, for ever, in a loop that does nothing else."""
    streams = Streams(3)
    first, second, third = streams.all
    assert [one.admits(100 * LARGE) for one in streams.all] == [True, False, False]
    first.give()
    assert streams.woken() == [1]
    assert second.admits(100 * LARGE)
    second.give()
    assert streams.woken() == [1, 2]
    assert third.admits(100 * LARGE)


def test_who_wants_less_than_it_waited_with_makes_room() -> None:
    streams = Streams(3)
    first, second, third = streams.all
    assert first.admits(100 * LARGE)
    assert not second.admits(100 * LARGE)
    assert not third.admits(LARGE)
    first.give()
    assert second.admits(LARGE)
    assert streams.woken() == [1, 2]


def test_what_is_not_large_does_not_wait_for_room_for_what_is_nor_the_other_way_round() -> None:
    streams = Streams(60)
    assert [stream.admits(LARGE) for stream in streams.all[:7]][-1] is False
    assert streams.all[7].admits(MEDIUM)
    assert [stream.admits(MEDIUM) for stream in streams.all[8:]][-1] is False
    streams.all[0].give()
    assert streams.woken() == [6]


def test_who_keeps_others_waiting_is_ended_the_longest_one_first_and_no_more_than_it_takes() -> None:
    streams = Streams(8)
    for stream in streams.all[:6]:
        assert stream.admits(LARGE)
        streams.clock.pass_by(0.1)
    streams.clock.pass_by(1_000)
    assert streams.clock.idle, "nobody waits"
    assert not streams.all[6].admits(LARGE)
    streams.clock.pass_by(PATIENCE - 0.01)
    assert not streams.ended
    streams.clock.pass_by(0.02)
    assert streams.ended == [0]
    assert streams.woken() == [6]
    streams.clock.pass_by(1_000)
    assert streams.ended == [0]
    streams.all[0].give()  # its handler notices
    assert streams.deliveries.used == 6 * LARGE
    assert not streams.all[7].admits(3 * LARGE)
    streams.clock.pass_by(1_000)
    assert streams.ended == [0, 1, 2, 3]
    assert streams.woken() == [6, 7]
    assert streams.clock.idle


def test_each_has_its_time_from_when_it_began_also_in_a_queue_without_end() -> None:
    streams = Streams(40)
    for stream in streams.all:
        stream.admits(LARGE)
    streams.clock.pass_by(PATIENCE + 0.01)
    assert streams.ended == [*range(6)], "one for each of the next six"
    assert streams.woken() == [*range(6, 12)]
    streams.clock.pass_by(PATIENCE - 0.1)
    assert streams.ended == [*range(6)]
    streams.clock.pass_by(0.2)
    assert streams.ended == [*range(12)]
    assert streams.deliveries.used == 6 * LARGE


def test_one_whose_turn_comes_while_it_is_held_up_elsewhere_keeps_nobody() -> None:
    """It is told that there is room, and asks no more: those behind it are served all the same."""
    streams = Streams(9)
    assert [stream.admits(LARGE) for stream in streams.all[:8]] == [True] * 6 + [False] * 2
    streams.all[0].give()
    streams.all[1].give()
    assert streams.all[7].admits(LARGE)
    assert not streams.all[8].admits(LARGE)
    for stream in [*streams.all[2:6], streams.all[7]]:
        stream.give()
    assert streams.all[8].admits(LARGE)
    assert not streams.all[0].admits(6 * LARGE)
    streams.clock.pass_by(1_000)
    assert streams.ended == [6, 8]


def test_one_that_can_not_be_ended_is_not_counted_any_more() -> None:
    streams = Streams(2)
    stuck = [streams.deliveries.stream(asyncio.Event()) for _ in range(7)]
    assert [one.admits(LARGE) for one in stuck] == [True] * 6 + [False]
    assert not streams.all[0].admits(LARGE)
    streams.clock.pass_by(PATIENCE - 0.01)
    assert not streams.woken()
    streams.clock.pass_by(0.02)
    assert stuck[6].room.is_set()
    assert streams.woken() == [0], "as many as there are others who wait, and no more"
    assert streams.deliveries.used == 6 * LARGE
    assert streams.clock.idle
    for one in stuck[:2]:
        one.give()  # its client has read it after all
    assert streams.deliveries.used == 6 * LARGE
    assert not stuck[0].admits(LARGE), "the next one counts as the first one did"
    stuck[2].give()
    assert stuck[0].admits(LARGE)
    for one in (*stuck, *streams.all):
        one.give()
    assert streams.deliveries.used == 0


SIZES = st.sampled_from([0, SMALL_BYTES, MEDIUM, MEDIUM_BYTES, LARGE, 2 * LARGE, 10 * LARGE])
STEPS = st.lists(st.tuples(st.integers(0, 7), SIZES, st.sampled_from(["ask", "give", "pass"])), max_size=60)


@given(STEPS)
def test_what_is_held_is_counted_bounded_and_comes_back(steps: list[tuple[int, int, str]]) -> None:
    streams = Streams(8)
    held: dict[Delivery, int] = {}
    for number, size, what in steps:
        stream = streams.all[number]
        if what == "ask":
            held.pop(stream, None)
            stream.give()
            if stream.admits(size) and size > SMALL_BYTES:
                held[stream] = size
        elif what == "give":
            held.pop(stream, None)
            stream.give()
        else:
            before = len(streams.ended)
            streams.clock.pass_by(size / LARGE)
            for ended in streams.ended[before:]:
                held.pop(streams.all[ended], None)
        for lane in (streams.deliveries.lane(MEDIUM), streams.deliveries.lane(LARGE)):
            mine = [one for one in streams.all if one in lane._holding]
            assert lane.used == sum(one.size for one in mine)
            assert lane.used <= lane.limit or len(mine) == 1
            assert not lane._waiting or mine, "nobody waits for nothing"
        assert all(one.lane is streams.deliveries.lane(size) for one, size in held.items())
    streams.clock.pass_by(10_000)
    assert not any(streams.deliveries.lane(size)._waiting for size in (MEDIUM, LARGE)), "everybody's turn comes"
    for stream in streams.all:
        stream.give()
    assert streams.deliveries.used == 0
    assert streams.clock.idle

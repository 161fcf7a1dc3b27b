"""The lease clock and what is due by it (S27)."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebuladb.node import lessor as lessor_module
from nebuladb.node.lessor import CLOCK_ENTRY_MS, EXPIRE_RETRY_MS, MAX_DUE, STALE_AT_ONCE, STALE_ENTRIES, Lessor


def test_the_clock_goes_on_from_what_the_store_knew_not_from_the_machines_uptime() -> None:
    lessor = Lessor(5_000, 1_000_000, [])
    assert lessor.clock(1_000_000) == 5_000
    assert lessor.clock(1_000_700) == 5_700


def test_an_entry_moves_the_clock_forward_and_never_back() -> None:
    lessor = Lessor(0, 0, [])
    lessor.observe(10_000, 100, leads=True)
    assert lessor.clock(100) == 10_000
    lessor.observe(10_050, 200, leads=True)  # it was proposed a while ago
    assert lessor.clock(200) == 10_100
    lessor.observe(0, 300, leads=True)
    assert lessor.clock(300) == 10_200


def test_a_follower_with_a_fast_clock_follows_the_leaders() -> None:
    """Else it would be ahead by what the clocks differ since they started, and as a leader end every lease early."""
    lessor = Lessor(0, 0, [])
    for second in range(1, 3_601):
        lessor.observe(second * 1_000, second * 1_010, leads=False)
    assert lessor.clock(3_600 * 1_010) == 3_600_000
    assert lessor.clock(3_600 * 1_010 + 500) == 3_600_500


def test_a_follower_stays_at_the_highest_entry_while_those_of_a_leader_behind_it_come() -> None:
    lessor = Lessor(0, 0, [])
    lessor.observe(10_000, 100, leads=False)
    lessor.observe(9_500, 300, leads=False)
    assert lessor.clock(300) == 10_000


def test_a_clock_of_the_machine_that_goes_back_holds_the_lease_clock_still() -> None:
    lessor = Lessor(700, 1_000, [])
    assert lessor.clock(400) == 700


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 500)), max_size=30))
def test_a_leaders_clock_is_monotone_and_never_ahead_of_the_entries_line(steps: list[tuple[int, int]]) -> None:
    """Each entry draws a line of slope 1; the clock is on the highest of them."""
    lessor = Lessor(0, 0, [])
    now, lines, last = 0, [0], 0
    for clock, passed in steps:
        now += passed
        lessor.observe(clock, now, leads=True)
        lines.append(clock - now)
        assert lessor.clock(now) == now + max(lines)
        assert lessor.clock(now) >= last
        last = lessor.clock(now)


def test_a_lease_is_due_when_its_time_has_come_and_not_before() -> None:
    lessor = Lessor(0, 0, [(7, 1_000, 3)])
    assert lessor.due(999) == []
    assert lessor.due(1_000) == [(7, 3)]


def test_a_renewal_puts_the_lease_off_and_is_named_by_the_next_expiry() -> None:
    lessor = Lessor(0, 0, [(7, 1_000, 3)])
    lessor.changed(7, 2_000, 9)
    assert lessor.due(1_999) == []
    assert lessor.due(2_000) == [(7, 9)]


def test_what_is_gone_is_not_due() -> None:
    lessor = Lessor(0, 0, [(7, 1_000, 3), (8, 1_000, 4)])
    lessor.changed(7, 0, 0)
    lessor.changed(99, 0, 0)
    assert len(lessor) == 1
    assert lessor.due(5_000) == [(8, 4)]


def test_an_expiry_is_proposed_again_until_it_is_applied() -> None:
    lessor = Lessor(0, 0, [(7, 1_000, 3)])
    assert lessor.due(1_000) == [(7, 3)]
    assert lessor.due(1_000 + EXPIRE_RETRY_MS - 1) == []
    assert lessor.due(1_000 + EXPIRE_RETRY_MS) == [(7, 3)]
    lessor.changed(7, 0, 0)
    assert lessor.due(1_000_000) == []


def test_a_tick_expires_a_bounded_number() -> None:
    lessor = Lessor(0, 0, [(lease, lease, 1) for lease in range(1, MAX_DUE + 6)])
    assert lessor.due(10**6) == [(lease, 1) for lease in range(1, MAX_DUE + 1)]
    assert lessor.due(10**6) == [(lease, 1) for lease in range(MAX_DUE + 1, MAX_DUE + 6)]


def test_an_idle_group_wants_an_entry_only_while_it_has_leases() -> None:
    lessor = Lessor(0, 0, [])
    assert not lessor.wants_entry(10 * CLOCK_ENTRY_MS)
    lessor.changed(7, 60_000, 1)
    lessor.observe(1, 10_000, leads=True)
    assert not lessor.wants_entry(10_000 + CLOCK_ENTRY_MS - 1)
    assert lessor.wants_entry(10_000 + CLOCK_ENTRY_MS)
    assert not lessor.wants_entry(10_000 + CLOCK_ENTRY_MS)
    lessor.observe(2, 11_000, leads=True)
    assert not lessor.wants_entry(11_000 + CLOCK_ENTRY_MS - 1)


def test_renewals_leave_no_trace_on_a_follower_which_asks_for_nothing_due() -> None:
    lessor = Lessor(0, 0, [])
    for number in range(10 * STALE_ENTRIES):
        lessor.changed(number % 3 + 1, 10**9 + number, number)
        lessor.changed(1_000 + number, 10**9, number)
        lessor.changed(1_000 + number, 0, 0)
    assert len(lessor) == 3
    assert lessor.scheduled <= 2 * len(lessor) + STALE_ENTRIES
    last = 10 * STALE_ENTRIES
    assert sorted(lessor.due(2 * 10**9)) == sorted((n % 3 + 1, n) for n in range(last - 3, last))


def test_neither_renewals_nor_expiries_have_a_follower_look_through_all_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million, that took 0.7 s of the loop."""
    lessor = Lessor(0, 0, [(lease, lease, 1) for lease in range(5 * STALE_ENTRIES)])
    monkeypatch.setattr(Lessor, "_schedule", lambda _: pytest.fail("all at once"))
    for number in range(10 * STALE_ENTRIES):
        lessor.changed(number % (5 * STALE_ENTRIES), 10**6 + number, number)
    assert lessor.scheduled == len(lessor)
    for lease in range(5 * STALE_ENTRIES):
        lessor.changed(lease, 0, 0)
    assert lessor.scheduled == len(lessor) == 0


def test_a_lease_that_is_shorter_now_is_due_in_time() -> None:
    lessor = Lessor(0, 0, [(7, 10_000, 3), (8, 1_000, 4)])
    lessor.changed(7, 0, 0)
    lessor.changed(7, 2_000, 5)
    assert lessor.due(1_000) == [(8, 4)]
    lessor.changed(8, 1_500, 6)  # renewed while it was on its way, and over before that is proposed again
    assert lessor.due(1_500) == [(8, 6)]
    assert lessor.due(2_000) == [(7, 5)]


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.one_of(st.just(0), st.integers(1, 3_000)), st.integers(0, 400)), max_size=60
    )
)
def test_due_is_what_a_plain_table_says(steps: list[tuple[int, int, int]]) -> None:
    lessor = Lessor(0, 0, [])
    table: dict[int, tuple[int, int]] = {}
    proposed: dict[tuple[int, int], int] = {}
    now = 0
    for renewal, (lease, ttl, passed) in enumerate(steps):
        now += passed
        if ttl:
            table[lease] = (now + ttl, renewal)
        else:
            table.pop(lease, None)
        lessor.changed(lease, now + ttl if ttl else 0, renewal)
        found = lessor.due(now)
        expected = {
            (lease, renewal)
            for lease, (expires, renewal) in table.items()
            if expires <= now and proposed.get((lease, renewal), -EXPIRE_RETRY_MS) + EXPIRE_RETRY_MS <= now
        }
        assert set(found) == expected
        assert len(found) == len(expected)
        proposed.update(dict.fromkeys(found, now))


def test_a_new_leader_takes_out_what_was_renewed_some_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower takes none out; of 100,000 leases, renewed once each, its first tick as leader took half a second."""
    count, pops = 30_000, 0
    replace = heapq.heapreplace

    def counted(heap: list[tuple[int, int]], item: tuple[int, int]) -> tuple[int, int]:
        nonlocal pops
        pops += 1
        return replace(heap, item)

    monkeypatch.setattr(lessor_module, "heapreplace", counted)
    lessor = Lessor(0, 0, [(lease, 10_000, 1) for lease in range(count)])
    for lease in range(count - 1):
        lessor.changed(lease, 60_000, 2)
    found: list[tuple[int, int]] = []
    ticks = 0
    while not found:
        pops, ticks = 0, ticks + 1
        found = lessor.due(20_000)
        assert pops <= STALE_AT_ONCE + MAX_DUE
    assert found == [(count - 1, 1)]
    assert ticks == (count - 1) // STALE_AT_ONCE + 1

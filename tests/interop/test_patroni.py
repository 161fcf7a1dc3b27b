"""The judgement of the Patroni campaign: that it sees two leaders at once, and only those."""

from __future__ import annotations

from typing import Any

from tests.interop.patroni import Candidate, leaderless, overlaps


def candidate(name: str, *said: tuple[float, str, float]) -> Candidate:
    process: Any = None
    return Candidate(name, process, [{"at": at, "event": event, "until": until} for at, event, until in said])


def test_two_leaders_are_seen() -> None:
    one = candidate("one", (1.0, "took", 20.0), (3.0, "kept", 22.0), (30.0, "lost", 0.0))
    assert one.times() == [(1.0, 22.0)], "no longer than its lease, though it noticed late"
    late = candidate("two", (22.5, "took", 42.0))
    assert overlaps([one, late]) == []
    assert leaderless([one, late]) == 0.5
    early = candidate("two", (21.5, "took", 42.0))
    assert len(overlaps([one, early])) == 1


def test_a_candidate_that_leads_twice() -> None:
    one = candidate(
        "one", (1.0, "took", 20.0), (5.0, "lost", 0.0), (9.0, "took", 29.0), (40.0, "took", 60.0), (41.0, "kept", 61.0)
    )
    assert one.times() == [(1.0, 5.0), (9.0, 29.0), (40.0, 61.0)]
    assert one.leads()

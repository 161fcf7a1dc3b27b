"""Each ambush brings about the moment that it waits for, in some of the seeds that have no other faults."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from nebuladb.sim.faults import AMBUSHES, OLDER, Faults, draw_ambush
from nebuladb.sim.runner import run_seed

SEEDS = 8
MOMENTS = {
    "voters": "voters die before they hear from whom they elected",
    "revivals": "former leader revived",
    "naps": "voter naps under a lease",
    "laggards": "laggard overtaken",
    "halves": "stall in the middle of a command",
    "echoes": "replies arrive under a successor",
    "losses": "loss behind an acknowledgement: voter",
    "sleeps": "all asleep while leases run",
    "handovers": "leadership handed over under a lease",
    "returns": "a later term comes to light under a lease",
}


def lone(ambush: str) -> list[int]:
    """The first seeds that have this one, and nothing else."""
    return [seed for seed in range(1, 600) if Faults.draw(Random(f"{seed} faults")).ambush == ambush][:SEEDS]


def test_kinds_that_came_later_leave_most_seeds_what_they_had() -> None:
    class Before(Random):
        def random(self) -> float:
            return 1.0

    drawn = [draw_ambush(Random(seed), Random(seed + 1)) for seed in range(300)]
    before = [draw_ambush(Random(seed), Before(seed + 1)) for seed in range(300)]
    kept = sum(one == other for one, other in zip(drawn, before, strict=True))
    assert set(drawn) == set(AMBUSHES)
    assert set(before) == set(AMBUSHES[:OLDER])
    assert 200 < kept < 280


def test_every_ambush_has_seeds_of_its_own() -> None:
    assert all(len(lone(ambush)) == SEEDS for ambush in AMBUSHES)
    assert MOMENTS.keys() < set(AMBUSHES)


@pytest.mark.parametrize("ambush", MOMENTS)
def test_what_it_waits_for_happens(ambush: str) -> None:
    hits: Counter[str] = Counter()
    for seed in lone(ambush):
        result = run_seed(seed, nodes=3, seconds=5.0)
        assert not result.violation, f"seed {seed}: {result.violation}"
        hits.update(result.report.faults.keys())
        if hits[MOMENTS[ambush]] > 1:
            return
    pytest.fail(f"in {SEEDS} seeds it happens in {hits[MOMENTS[ambush]]}")

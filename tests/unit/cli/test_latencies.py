from __future__ import annotations

import math
import random

import pytest

from nebuladb.cli.latencies import Latencies


def test_a_percentile_is_right_to_half_a_percent() -> None:
    rng, latencies = random.Random(7), Latencies()
    calls = sorted(10 ** rng.uniform(-5, 2) for _ in range(5000))
    for seconds in rng.sample(calls, len(calls)):
        latencies.add(seconds)
    for share in (0.001, 0.5, 0.9, 0.99, 0.999):
        exact = calls[math.ceil(share * len(calls)) - 1]
        assert latencies.percentile(share) == pytest.approx(exact, rel=0.006)
    assert latencies.percentile(1) == pytest.approx(calls[-1], rel=0.006)
    assert (latencies.count, latencies.longest) == (5000, calls[-1])


def test_no_percentile_is_above_the_longest() -> None:
    latencies = Latencies()
    latencies.add(0.01)
    assert latencies.percentile(0.5) <= latencies.percentile(1) <= latencies.longest == 0.01
    assert latencies.percentile(0.5) == pytest.approx(0.01, rel=0.006)


def test_what_takes_no_time_or_very_long_is_counted_and_memory_is_bounded() -> None:
    latencies = Latencies()
    assert latencies.percentile(0.99) == 0.0
    for exponent in range(-9000, 3000):
        latencies.add(10 ** (exponent / 1000))
    latencies.add(0.0)
    assert latencies.count == 12_001
    assert len(latencies._buckets) < 2200
    assert latencies.percentile(0.1) < 2e-6

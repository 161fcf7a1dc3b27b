"""A short power-cut campaign, and the same with the syncs swallowed, which has to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import powercut, powerfail
from tests.integration.campaign import MIN_ACKNOWLEDGED

CYCLES = 3
SEED = 2


@pytest.fixture
def library(tmp_path: Path) -> Path:
    library = powerfail.build(tmp_path)
    if library is None:
        pytest.skip(powercut.SKIPPED)
    return library


def test_nothing_acknowledged_is_lost_when_the_power_goes(tmp_path: Path, library: Path) -> None:
    report = powercut.run(tmp_path, CYCLES, SEED, library).report
    assert report.violations == []
    assert report.cycles == CYCLES
    assert report.least >= MIN_ACKNOWLEDGED
    assert report.leader_kills >= 1


def test_without_syncs_it_is_found_out(tmp_path: Path, library: Path) -> None:
    report = powercut.run(tmp_path, powercut.SELF_TEST_CYCLES, SEED, library, drop=True).report
    assert powercut.caught(report)

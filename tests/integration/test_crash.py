"""A short crash campaign, and the proof that its checker sees one lost write in the very data that it passed."""

from __future__ import annotations

from pathlib import Path

from tests.integration import crash
from tests.integration.campaign import MIN_ACKNOWLEDGED

CYCLES = 3
SEED = 4


def test_nothing_acknowledged_is_lost_when_nodes_are_killed(tmp_path: Path) -> None:
    campaign = crash.run(tmp_path, CYCLES, SEED)
    report = campaign.report
    assert report.violations == []
    assert report.cycles == CYCLES
    assert report.least >= MIN_ACKNOWLEDGED
    assert report.leader_kills >= 1
    assert campaign.corrupted_is_found()

"""A short churn campaign, and the proof that its checker sees one lost write in the very data that it passed."""

from __future__ import annotations

from pathlib import Path

from tests.integration import churn

STEPS = ("add", "kill", "replace", "remove", "install", "transfer", "compact")
SEED = 3


def test_nothing_acknowledged_is_lost_while_nodes_come_and_go(tmp_path: Path) -> None:
    campaign = churn.run(tmp_path, 0, SEED, first=STEPS)
    assert campaign.violations == []
    assert sorted(campaign.counts) == sorted(STEPS)
    assert campaign.members == churn.FOUNDERS
    assert campaign.corrupted_is_found()

"""A short run of kills by phase, and the proof that its checker sees one lost write in the very data that it passed."""

from __future__ import annotations

from pathlib import Path

from tests.integration import phases

KILLS = 2
SEED = 11


def test_killed_in_an_install_a_compaction_or_a_restore_nothing_is_lost(tmp_path: Path) -> None:
    result = phases.run(tmp_path, KILLS, SEED)
    assert result.violations == []
    assert {campaign.kind.name: campaign.hits.total() for campaign in result.campaigns} == dict.fromkeys(
        phases.KINDS, KILLS
    )
    assert result.acknowledged > 0
    assert result.corrupted_is_found

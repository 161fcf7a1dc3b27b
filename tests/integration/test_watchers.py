"""A short run of the watchers' campaign, and what it makes of a server that leaves an event out."""

from __future__ import annotations

from tests.integration.cluster import Cluster
from tests.integration.watchers import Run


async def test_every_watcher_is_told_every_event_once_in_order_while_a_leader_dies(fresh_cluster: Cluster) -> None:
    report = await Run(fresh_cluster, 1_000, 100, rate=300, per_stream=100).run(3, kills=1)
    assert not report.wrong
    assert report.kills == 1
    assert report.deletes > 0
    assert report.events >= 10 * report.puts


async def test_an_event_left_out_is_found(cluster: Cluster) -> None:
    report = await Run(cluster, 20, 10, rate=200, self_test=True).run(1, kills=0)
    assert len(report.wrong) == 1
    assert "happened" in report.wrong[0]

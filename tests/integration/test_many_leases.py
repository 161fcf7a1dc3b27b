"""A short run of the leases' campaign."""

from __future__ import annotations

from pathlib import Path

from jepsen.clocks import find
from tests.integration.cluster import Cluster
from tests.integration.leases import Run, clock


async def test_leases_end_at_their_time_over_a_killed_leader_and_under_a_clock_that_is_ahead(tmp_path: Path) -> None:
    """etcd 50 and 66."""
    ahead = 2 if find() is not None else None
    with Cluster(tmp_path, node_environ=lambda node: clock(node, -1 if ahead is None else ahead)) as cluster:
        cluster.start()
        cluster.wait_ready()
        run = Run(cluster, 500, (3, 5), ahead)
        report = await run.run(kills=1)
    assert not report.wrong
    assert report.kills == 1
    assert report.renewals > 100
    assert report.ahead is (ahead is not None)
    assert run.found_if_longer()

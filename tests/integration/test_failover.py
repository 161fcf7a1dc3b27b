"""A short run of the failover campaign."""

from __future__ import annotations

from tests.integration.cluster import Cluster
from tests.integration.failover import MAX_ROUNDS, run


async def test_a_new_leader_takes_two_rounds_at_most(fresh_cluster: Cluster) -> None:
    _, rounds = await run(fresh_cluster, 2)
    assert max(rounds) <= MAX_ROUNDS

"""The disk under the leader's log hangs: another node leads, and the stalled one can still be stopped (S33)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nebuladb.client import Client
from nebuladb.server.lifecycle import CLOSE_SECONDS, DRAIN_SECONDS
from tests.integration import powerfail
from tests.integration.cluster import Cluster

PATIENCE = 30.0


def test_a_leader_whose_disk_hangs_leads_no_more_and_can_be_stopped(tmp_path: Path) -> None:
    library = powerfail.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler, so a disk that hangs can't be simulated here")
    records = [tmp_path / f"n{node + 1}.synced" for node in range(3)]

    with Cluster(
        tmp_path,
        environ={"NEBULA_LOG_STALL_TIMEOUT": "1s"},
        node_environ=lambda node: powerfail.environ(library, records[node], cluster.data_dir(node)),
    ) as cluster:
        cluster.start()
        cluster.wait_ready()
        stalled = cluster.leader()
        # What goes through the stalled node itself is answered once it has applied it, which waits for its disk (S1).
        others = [endpoint for node, endpoint in enumerate(cluster.endpoints) if node != stalled]
        with Client(others, timeout=PATIENCE) as client:
            client.put(b"before", b"v")
            powerfail.control(records[stalled], hang=1, match="/raft/")
            client.put(b"meanwhile", b"v")  # a majority of disks is well
            cluster.wait_for(lambda: cluster.leader() != stalled, "another node leads", PATIENCE)
            client.put(b"after", b"v")
            alarms = (cluster.status(stalled) or {"alarms": []})["alarms"]
            assert any("the log's disk has not answered" in alarm for alarm in alarms)
            began = time.monotonic()
            cluster.stop(stalled)
            assert time.monotonic() - began < DRAIN_SECONDS + CLOSE_SECONDS + 2
            for key in (b"before", b"meanwhile", b"after"):
                assert client.get(key) is not None

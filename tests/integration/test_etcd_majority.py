"""What one node of three still answers when the others are lost for good: what etcd's way out of it needs."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import pytest

from nebuladb.ids import ETCD_GROUP
from nebuladb.node.backup import BackupReader
from nebuladb.pb.etcd import cluster_pb2, lease_pb2
from nebuladb.pb.etcd import maintenance_pb2 as pb
from tests.etcd.client import Client, Refused
from tests.etcd.servers import Nebula

SOON = 60.0
"""Seconds, many more than it takes: no call waits for more than 7, and one that found nobody does so once."""


@pytest.mark.etcd(53)
def test_a_survivor_gives_its_snapshot_and_its_leases(tmp_path: Path) -> None:
    with Nebula(tmp_path, 3) as servers, Client(servers.endpoints[2]) as client:
        client.put(b"k", b"kept")
        client.grant(600, 7)
        client.range(b"k")  # linearizable: this node has both
        for node in (0, 1):
            servers.kill(node)
        servers.wait_for(lambda: client.status().leader == 0, "the survivor knows no leader")
        begun = time.monotonic()
        pieces = client.stream("Maintenance/Snapshot", pb.SnapshotRequest(), pb.SnapshotResponse)
        reader = BackupReader(BytesIO(b"".join(piece.blob for piece in pieces)))
        keys = {part.descriptor.group: (part.keys, len(list(chunks))) for part, chunks in reader.shards()}
        assert keys[ETCD_GROUP][0] == 1
        listed = client.call("Lease/LeaseLeases", lease_pb2.LeaseLeasesRequest(), lease_pb2.LeaseLeasesResponse)
        assert [one.ID for one in listed.leases] == [7]
        with pytest.raises(Refused, match="UNAVAILABLE etcdserver: unhealthy cluster"):
            client.call(
                "Cluster/MemberAdd",
                cluster_pb2.MemberAddRequest(peerURLs=["http://127.0.0.1:9"]),
                cluster_pb2.MemberAddResponse,
            )
        assert time.monotonic() - begun < SOON
